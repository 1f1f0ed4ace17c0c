"""The optimiser after a restore is the optimiser before it, to the bit: training goes on as if never interrupted.

Run: pytest tests/checkpoint/test_optimizer_state.py
"""

import json

import pytest
import torch

from dinghai.errors import RunFailed
from dinghai.train.checkpoint import load_latest_checkpoint, save_checkpoint
from dinghai.train.optimizer_state import optimizer_tensors, restore_optimizer


def model(seed: int, dtype=torch.float32) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 2, bias=False))
    layers.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))  # never gets a gradient, so has no state
    return layers.to(dtype)


def optimizer(layers, **options):
    matrices = [p for p in layers.parameters() if p.dim() > 1]
    others = [p for p in layers.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 0.5}]
    return torch.optim.AdamW(groups, **{"lr": 0.01, "betas": (0.9, 0.95), **options})


def train(layers, adamw, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 5, generator=generator).to(next(layers.parameters()).dtype)
        adamw.zero_grad()
        layers(inputs).square().sum().backward()
        for group in adamw.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] = group["lr"] * 0.9  # a schedule: the learning rate is part of the state
        adamw.step()


def bits(layers, adamw):
    """Everything that decides how training goes on."""
    names = dict(layers.named_parameters())
    tensors, values = optimizer_tensors(adamw, names)
    return {**names, **tensors}, values


@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True}, {"foreach": False}, {"fused": True}, {"lr": torch.tensor(0.01), "foreach": False}],
    ids=["default", "amsgrad", "loop", "fused", "tensor-lr"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_as_if_never_interrupted(tmp_path, options, dtype):
    layers = model(0, dtype)
    adamw = optimizer(layers, **options)
    train(layers, adamw, range(4))
    names = dict(layers.named_parameters())
    tensors, values = optimizer_tensors(adamw, names)
    save_checkpoint(tmp_path, 4, {"policy": names, "optimizer": tensors}, {"optimizer": values}, keep=1)
    train(layers, adamw, range(4, 7))

    again = model(1, dtype)
    adamw_again = optimizer(again, **options)
    train(again, adamw_again, range(9))  # a state of its own, all of which must go
    found = load_latest_checkpoint(tmp_path, pytest.fail)
    again.load_state_dict(found.tensors["policy"])
    restore_optimizer(adamw_again, dict(again.named_parameters()), found.tensors["optimizer"], found.state["optimizer"])
    train(again, adamw_again, range(4, 7))

    (expected, expected_values), (got, got_values) = bits(layers, adamw), bits(again, adamw_again)
    assert expected_values == got_values
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == got[name].dtype, name
        assert torch.equal(tensor, got[name]), name


def test_state_in_another_precision_than_the_weights_is_not_cast():
    layers = model(0, torch.bfloat16)
    adamw = optimizer(layers)
    train(layers, adamw, range(1))
    names = dict(layers.named_parameters())
    for state in adamw.state.values():
        state["exp_avg"] = torch.rand(state["exp_avg"].shape)
    tensors, values = optimizer_tensors(adamw, names)
    fresh = optimizer(layers)
    restore_optimizer(fresh, names, {k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(values)))
    assert torch.equal(fresh.state[names["0.weight"]]["exp_avg"], tensors["0.weight/exp_avg"])
    assert fresh.state[names["0.weight"]]["exp_avg"].dtype == torch.float32


def test_the_restored_state_is_a_copy():
    layers = model(0)
    adamw = optimizer(layers)
    train(layers, adamw, range(1))
    names = dict(layers.named_parameters())
    tensors, values = optimizer_tensors(adamw, names)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    fresh = optimizer(layers)
    restore_optimizer(fresh, names, kept, values)
    before = kept["0.weight/exp_avg"].clone()
    train(layers, fresh, range(1, 3))
    assert torch.equal(kept["0.weight/exp_avg"], before)


def test_a_restore_to_before_the_first_step_leaves_no_state_behind():
    layers = model(0)
    names = dict(layers.named_parameters())
    tensors, values = optimizer_tensors(optimizer(layers), names)
    adamw = optimizer(layers)
    train(layers, adamw, range(2))
    restore_optimizer(adamw, names, tensors, values)
    assert not adamw.state
    assert adamw.param_groups[0]["lr"] == 0.01


def test_betas_stay_a_tuple():
    layers = model(0)
    names = dict(layers.named_parameters())
    tensors, values = optimizer_tensors(optimizer(layers, betas=(0.5, 0.75)), names)
    fresh = optimizer(layers)
    restore_optimizer(fresh, names, tensors, json.loads(json.dumps(values)))
    assert fresh.param_groups[0]["betas"] == (0.5, 0.75)


@pytest.mark.parametrize("change", ["missing", "added", "order", "shape"])
def test_another_model_is_refused_and_nothing_changed(change):
    layers = model(0)
    adamw = optimizer(layers)
    train(layers, adamw, range(1))
    names = dict(layers.named_parameters())
    tensors, values = optimizer_tensors(adamw, names)
    values = json.loads(json.dumps(values))
    expected = {
        "missing": "unused is only in the model",
        "added": "extra is only in the checkpoint",
        "order": "their order or groups differ",
        "shape": r"0\.weight/exp_avg of shape \(2,\), the parameter has \(7, 5\)",
    }[change]
    if change == "missing":
        values["groups"][1]["params"].remove("unused")
    elif change == "added":
        values["groups"][1]["params"].append("extra")
    elif change == "order":
        values["groups"][0]["params"].reverse()
    else:
        tensors["0.weight/exp_avg"] = torch.zeros(2)
    before = {k: t.clone() for k, t in optimizer_tensors(adamw, names)[0].items()}
    with pytest.raises(RunFailed, match=expected):
        restore_optimizer(adamw, names, tensors, values)
    after = optimizer_tensors(adamw, names)[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_parameter_without_a_name_is_refused():
    layers = model(0)
    with pytest.raises(ValueError, match=r"group 0 has a parameter of shape \(7, 5\) without a name"):
        optimizer_tensors(optimizer(layers), {})
