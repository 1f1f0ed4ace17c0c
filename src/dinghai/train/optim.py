"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from dinghai.config.settings import UpdateSettings


def build_optimizer(parameters: Iterable[nn.Parameter], update: UpdateSettings, lr: float) -> torch.optim.AdamW:
    """AdamW over `parameters`."""
    return torch.optim.AdamW(parameters, lr=lr, betas=update.betas, weight_decay=update.weight_decay, fused=True)


def learning_rate(peak: float, step: int, steps: int, update: UpdateSettings) -> float:
    """The learning rate of a training step (1, 2, …, steps): linear warm-up, then the schedule, which ends near 0.

    It depends on nothing but its arguments, so there is no scheduler state to save.
    """
    if step <= update.warmup:
        return peak * step / update.warmup
    progress = (step - update.warmup - 1) / max(1, steps - update.warmup)
    if update.schedule == "linear":
        return peak * (1 - progress)
    if update.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
