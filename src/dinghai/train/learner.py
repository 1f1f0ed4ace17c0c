"""Something that is trained: the policy, or the critic of PPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinghai.config.settings import UpdateSettings
from dinghai.train.optim import build_optimizer, learning_rate, set_learning_rate
from dinghai.train.optimizer_state import optimizer_tensors, restore_optimizer


@dataclass(frozen=True)
class Learner:
    """Weights, their optimiser, and its peak learning rate.

    weights: what the model computes with
    masters: what the optimiser changes: in float32 the same tensors; of bfloat16 weights float32 copies, since a step
             of 1e-6 vanishes in bfloat16's 8 bits
    """

    name: str
    weights: Mapping[str, nn.Parameter]
    masters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    peak_lr: float
    update: UpdateSettings

    @classmethod
    def of(cls, name: str, weights: Mapping[str, nn.Parameter], peak_lr: float, update: UpdateSettings) -> Learner:
        masters = {
            n: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float(), requires_grad=True)
            for n, p in weights.items()
        }
        return cls(name, weights, masters, build_optimizer(masters.values(), update, peak_lr), peak_lr, update)

    def count_missing_gradients_as_zero(self) -> None:
        """Gives weights that no backward pass has reached a gradient of 0.

        An optimiser passes over a weight without a gradient, but moves one of gradient 0 by its momentum: as it does
        when the samples that did not need to be scored are.
        """
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)

    def clip_gradient(self) -> Tensor:
        """Limits the gradient's norm to `max_grad_norm`; returns what it was."""
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                self.masters[name].grad = _take_gradient(weight)
        return torch.nn.utils.clip_grad_norm_(self.masters.values(), self.update.max_grad_norm or float("inf"))

    def step(self, lr: float) -> None:
        """One optimiser step."""
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        self._publish()

    def drop_gradient(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def lr(self, step: int, steps: int) -> float:
        """The learning rate of a training step."""
        return learning_rate(self.peak_lr, step, steps, self.update)

    def tensors(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What a checkpoint keeps: groups of tensors, and the optimiser's JSON."""
        state, scalars = optimizer_tensors(self.optimizer, self.masters)
        weights = {name: p.detach() for name, p in self.masters.items()}
        return {self.name: weights, f"{self.name}-optimizer": state}, scalars

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], scalars: Mapping[str, Any]) -> None:
        """Puts back what `tensors` gave."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[self.name][name])
        self._publish()
        restore_optimizer(self.optimizer, self.masters, tensors[f"{self.name}-optimizer"], scalars)

    @torch.no_grad()
    def _publish(self) -> None:
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])


def gradient_buffer(weight: nn.Parameter) -> Tensor | None:
    """The float32 tensor that a gradient made outside autograd is added to, until `clip_gradient`; None: it is frozen.

    Of float32 weights it is `grad` itself, to which autograd adds its own part in place. Of others it stands beside
    `grad`, as `main_grad`, since sums over many tokens would lose digits in their dtype.
    """
    if not weight.requires_grad:
        return None
    if weight.dtype == torch.float32:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad
    if getattr(weight, "main_grad", None) is None:
        weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)  # type: ignore[attr-defined]
    return weight.main_grad  # type: ignore[attr-defined]


def _take_gradient(weight: nn.Parameter) -> Tensor | None:
    """The gradient of a weight in float32, of which it keeps nothing."""
    gradient = None if weight.grad is None else weight.grad.float()
    beside: Tensor | None = getattr(weight, "main_grad", None)
    weight.grad = None
    if beside is None:
        return gradient
    weight.main_grad = None  # type: ignore[attr-defined]
    return beside if gradient is None else beside.add_(gradient)
