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

    def clip_gradient(self) -> Tensor:
        """Limits the gradient's norm to `max_grad_norm`; returns what it was."""
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                self.masters[name].grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None
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
