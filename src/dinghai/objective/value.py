"""The critic's loss.

Shapes: one value a token, [B, T] or packed [N] (with cu_seqlens left out: no sequence is asked for).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.reduce import Normalizer
from dinghai.objective.stats import on_grid


@dataclass(frozen=True)
class ValueLossOutput:
    """loss: scalar with gradient. sums: additive float64 sums, see `value_metrics`."""

    loss: Tensor
    sums: dict[str, Tensor]


def value_loss(
    value: Tensor,
    value_old: Tensor,
    target: Tensor,
    mask: Tensor,
    clip: float | None = None,
    normalizer: Normalizer | None = None,
) -> ValueLossOutput:
    """1/2 mean over tokens of max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2); without a clip the first alone.

    value:      V, with gradient
    value_old:  V of the critic before the first update on the batch
    target:     R, the return
    clip:       eps in units of the return; None: off (the value clip is not in the PPO paper, but in its code)
    normalizer: tokens of the whole optimiser step; by default those of this batch
    """
    if not value.shape == value_old.shape == target.shape == mask.shape:
        raise InputError(
            "value, value_old, target and mask must have one shape, got "
            f"{[tuple(t.shape) for t in (value, value_old, target, mask)]}"
        )
    V, V_old, R = (torch.where(mask, t, 0).float() for t in (value, value_old, target))
    squared = (V - R) ** 2
    stopped = torch.zeros_like(mask)
    loss = squared
    if clip is not None:
        clipped = (V.clamp(V_old - clip, V_old + clip) - R) ** 2
        # Where the clipped error is the larger one, the loss no longer depends on V.
        stopped = mask & ((V - V_old).abs() > clip) & (clipped > squared)
        loss = torch.maximum(squared, clipped)
    tokens = normalizer.tokens if normalizer is not None else mask.sum()
    tokens = tokens.clamp_min(1) if isinstance(tokens, Tensor) else max(1, tokens)
    with torch.no_grad():
        sums = {
            "tokens": mask.sum().double(),
            "stopped": stopped.sum().double(),
            "error_squared": on_grid(torch.where(mask, squared, 0)).sum(),
            "target": on_grid(R).sum(),
            "target_squared": on_grid(R.double() ** 2).sum(),
        }
    return ValueLossOutput(0.5 * torch.where(mask, loss, 0).sum() / tokens, sums)


def value_metrics(sums: dict[str, float]) -> dict[str, float]:
    """value_clip_fraction: tokens whose value gradient the clip made zero; explained_variance: 1 - mse / var(R)."""
    n = sums.get("tokens", 0.0)
    if n == 0:
        return {}
    variance = sums["target_squared"] / n - (sums["target"] / n) ** 2
    metrics = {"value_clip_fraction": sums["stopped"] / n, "value_error": sums["error_squared"] / n}
    if variance > 0:
        metrics["explained_variance"] = 1 - sums["error_squared"] / n / variance
    return metrics
