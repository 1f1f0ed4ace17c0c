"""The state of an optimiser as named tensors and JSON, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinghai.errors import RunFailed


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state: (tensors to store, JSON values to store).

    names: name → parameter, for every parameter that it updates, as `dict(model.named_parameters())`

    Tensors are called `PARAMETER/exp_avg` and so on; hyperparameters (lr, betas, …) that are tensors `group.0/lr`. The
    JSON holds what is not a tensor. Raises ValueError for a parameter without a name.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    tensors: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = []
    scalars: dict[str, dict[str, Any]] = {}
    for index, group in enumerate(optimizer.param_groups):
        members = [_name(name_of, parameter, index) for parameter in group["params"]]
        kept = {key: value for key, value in group.items() if key != "params"}
        groups.append({"params": members, "options": _split(kept, f"group.{index}", tensors)})
        for name, parameter in zip(members, group["params"], strict=True):
            if parameter in optimizer.state:
                scalars[name] = _split(optimizer.state[parameter], name, tensors)
    return tensors, {"groups": groups, "scalars": scalars}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Any],
) -> None:
    """Puts back what `optimizer_tensors` gave, dtypes included (`load_state_dict` would cast to the parameter's).

    Nothing is changed unless everything fits. Raises RunFailed where the parameters, their order or a shape differ.
    """
    _check_members(optimizer, names, saved)
    of_owner: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        owner, _, key = path.rpartition("/")
        of_owner.setdefault(owner, {})[key] = tensor
    _check_shapes(names, of_owner, saved)
    optimizer.state.clear()
    for index, (group, was) in enumerate(zip(optimizer.param_groups, saved["groups"], strict=True)):
        for key, value in was["options"].items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        group |= {key: tensor.clone() for key, tensor in of_owner.get(f"group.{index}", {}).items()}
        for name in was["params"]:
            if name in saved["scalars"]:
                restored = {k: _placed(k, t, names[name], group) for k, t in of_owner.get(name, {}).items()}
                optimizer.state[names[name]] = restored | saved["scalars"][name]


def _name(name_of: dict[int, str], parameter: Tensor, group: int) -> str:
    if id(parameter) not in name_of:
        raise ValueError(
            f"the optimiser's group {group} has a parameter of shape {tuple(parameter.shape)} without a name"
        )
    return name_of[id(parameter)]


def _split(values: Mapping[str, Any], owner: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Moves the tensors among `values` to `tensors` and returns the rest."""
    tensors |= {f"{owner}/{key}": value for key, value in values.items() if isinstance(value, Tensor)}
    return {key: value for key, value in values.items() if not isinstance(value, Tensor)}


def _placed(key: str, tensor: Tensor, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A copy where the optimiser expects it: torch keeps step counts on the CPU unless a kernel reads them."""
    on_cpu = key == "step" and not (group.get("capturable") or group.get("fused"))
    return tensor.to("cpu" if on_cpu else parameter.device, copy=True)


def _check_members(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    name_of = {id(parameter): name for name, parameter in names.items()}
    have = [[_name(name_of, p, n) for p in group["params"]] for n, group in enumerate(optimizer.param_groups)]
    had = [group["params"] for group in saved["groups"]]
    if have == had:
        return
    flat_have, flat_had = {n for g in have for n in g}, {n for g in had for n in g}
    odd = sorted(flat_have ^ flat_had)
    what = (
        f"{odd[0]} is only in the {'model' if odd[0] in flat_have else 'checkpoint'}"
        if odd
        else "their order or groups differ"
    )
    raise RunFailed(
        f"the checkpoint's optimiser is for other parameters: {what}; resume with the model it was saved from"
    )


def _check_shapes(
    names: Mapping[str, Tensor], of_owner: Mapping[str, Mapping[str, Tensor]], saved: Mapping[str, Any]
) -> None:
    for name in saved["scalars"]:
        for key, tensor in of_owner.get(name, {}).items():
            if key != "step" and tensor.shape != names[name].shape:
                raise RunFailed(
                    f"the checkpoint's optimiser has {name}/{key} of shape {tuple(tensor.shape)}, the parameter has "
                    f"{tuple(names[name].shape)}; resume with the model it was saved from"
                )
