"""The loss of the critic, with or without PPO's value clip.

Shapes: B sequences, T tokens of a padded row, N tokens that count (packed, see layout.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.layout import Layout
from dinghai.objective.reduce import Normalizer, Reduction, attach_gradient
from dinghai.objective.stats import on_grid

VALUE_SUMS = ("tokens", "stopped", "error", "error_squared", "returns", "returns_squared")


@dataclass(frozen=True)
class ValueStats:
    """Sums over the tokens that count; they add exactly, as those of `Stats` do."""

    sums: Tensor  # [6] float64, named by VALUE_SUMS

    def __add__(self, other: ValueStats) -> ValueStats:
        """The statistics of both batches together."""
        return ValueStats(self.sums + other.sums)

    def __radd__(self, other: object) -> ValueStats:
        """So that the built-in `sum` works, which begins with 0."""
        return self if other == 0 else NotImplemented

    def metrics(self) -> dict[str, float]:
        """Divided sums, by name. Empty without any token.

        value_clip_fraction   tokens whose gradient is exactly zero because of the clip
        value_error_rms       sqrt(mean (V - R)²), in units of the return
        explained_variance    1 - Var(R - V) / Var(R); left out where all returns are equal
        """
        s = dict(zip(VALUE_SUMS, self.sums.tolist(), strict=True))
        n = s["tokens"]
        if n == 0:
            return {}
        metrics = {"value_clip_fraction": s["stopped"] / n, "value_error_rms": (s["error_squared"] / n) ** 0.5}
        variance = s["returns_squared"] / n - (s["returns"] / n) ** 2
        # A variance from sums of squares keeps no digits below this; what is left there is rounding.
        if not variance <= 1e-9 * max(1.0, s["returns_squared"] / n):
            unexplained = s["error_squared"] / n - (s["error"] / n) ** 2
            metrics["explained_variance"] = 1 - unexplained / variance
        return metrics


@dataclass(frozen=True)
class ValueLossOutput:
    """What `value_loss` returns."""

    loss: Tensor  # scalar, minimised; carries the gradient to `value`
    stats: ValueStats


def value_loss(
    *,
    value: Tensor,
    returns: Tensor,
    value_old: Tensor | None = None,
    clip: float | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reduction: Reduction = Reduction("token-mean"),  # noqa: B008 - frozen
    normalizer: Normalizer | None = None,
) -> ValueLossOutput:
    """½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²) of each token, reduced; ½ (V - R)² without a clip.

    The gradient is V - R, and exactly 0 where the clipped error is the larger one. On a tie the token is not stopped.

    Args:
        value: V, with grad; padded [B, T] with `mask`, or packed [N] with `cu_seqlens`, as for `PolicyLoss`.
        returns: R, the target. value_old: V of the critic that the returns were made with; needed by a clip.
        clip: ε, half-width in units of the return (usually 0.2 to 0.5); None: no clip.

    Source: not in the PPO paper; from OpenAI's `baselines` (ppo2). Masked positions may hold anything.

    Raises:
        InputError: shapes do not fit, or a clip is asked for without `value_old` or with ε <= 0.
    """
    _check(value, returns, value_old, clip)
    layout = Layout.of(value, mask, cu_seqlens)
    gathered_N = layout.gather(value)
    value_N = gathered_N if gathered_N.dtype == torch.float64 else gathered_N.float()
    v_N, returns_N = value_N.detach(), layout.gather(returns.detach()).to(value_N.dtype)
    error_N = v_N - returns_N
    loss_N, weight_N = 0.5 * error_N.square(), error_N
    stopped_N = torch.zeros_like(error_N, dtype=torch.bool)
    if clip is not None and value_old is not None:
        old_N = layout.gather(value_old.detach()).to(value_N.dtype)
        clipped_N = 0.5 * (old_N + (v_N - old_N).clamp(-clip, clip) - returns_N).square()
        # Within the band both are one number, up to rounding; only beyond it is the clipped one a constant.
        stopped_N = ((v_N - old_N).abs() > clip) & (clipped_N > loss_N)
        loss_N, weight_N = torch.where(stopped_N, clipped_N, loss_N), weight_N.masked_fill(stopped_N, 0.0)
    columns = (torch.ones_like(error_N), stopped_N, error_N, error_N.square(), returns_N, returns_N.square())
    sums = on_grid(torch.stack([column.double() for column in columns])).sum(dim=1)
    return ValueLossOutput(
        loss=reduction(attach_gradient(loss_N, weight_N, value_N), layout, normalizer), stats=ValueStats(sums)
    )


def _check(value: Tensor, returns: Tensor, value_old: Tensor | None, clip: float | None) -> None:
    for name, x in (("value", value), ("returns", returns), ("value_old", value_old)):
        if x is None:
            continue
        if not x.is_floating_point():
            raise InputError(f"{name} must be a floating-point tensor; got {x.dtype}")
        if x.shape != value.shape:
            raise InputError(f"{name} has shape {list(x.shape)}, but value has {list(value.shape)}")
    if clip is not None and (value_old is None or not clip > 0):
        raise InputError(f"a value clip needs value_old and a half-width above 0; got {clip!r}")
