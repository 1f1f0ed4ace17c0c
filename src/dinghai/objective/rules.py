"""The rules: what each makes of a token's importance ratio and advantage. Registered in registry.py.

Shapes: N tokens that count (packed, see layout.py). Symbols: r importance ratio, A advantage, J surrogate objective
(maximised), w the coefficient of ∇log π_new in ∇J, before the reduction's factor.

A rule is three functions of (TokenInputs, its Parameters) -> [N]: surrogate, weight and region. The weight is the
closed form of the surrogate's gradient; the tests hold every registered rule to that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.decision import Region
from dinghai.objective.layout import Layout
from dinghai.objective.parameters import Parameters, parameter


@dataclass(frozen=True)
class TokenInputs:
    """All that a rule may look at, for the tokens that count; there is no mask to forget."""

    log_ratio: Tensor  # [N] nats, of the ratio the rule acts on (token or sequence)
    ratio: Tensor  # [N] r = exp(log_ratio)
    advantage: Tensor  # [N] A
    logp_new: Tensor  # [N] log π_new(token), nats
    logp_old: Tensor  # [N] log π_old(token), nats
    layout: Layout  # which tokens make a sequence

    @property
    def importance_weighted(self) -> Tensor:
        """r·A, without any clip: both the surrogate and, since ∇r = r ∇log π, its weight."""
        # A token without advantage has none at any ratio; r·A would be inf·0 = NaN where r overflows.
        return torch.where(self.advantage == 0, 0.0, self.ratio * self.advantage)


@dataclass(frozen=True)
class ClipParameters(Parameters):
    """Of the clip of PPO and GRPO. The defaults are PPO's; GRPO's paper leaves ε unstated."""

    eps_low: float = parameter(
        0.2,
        unit="offset from 1",
        usual=(0.1, 0.3),
        usual_sequence=(3e-4, 1e-2),  # GSPO's paper 3e-4; ScaleRL (arXiv 2510.13786) found 4e-3 and more stable
        description="the band begins at 1-eps_low; from 1 on there is no lower bound",
    )
    eps_high: float = parameter(
        0.2,
        unit="offset from 1",
        usual=(0.1, 0.4),
        usual_sequence=(4e-4, 1e-2),
        description="the band ends at 1+eps_high; 0.28 is clip-higher (DAPO, arXiv 2503.14476)",
    )
    dual_clip: float | None = parameter(
        None,
        unit="absolute ratio",
        usual=(3.0, 10.0),
        above=1.0,
        description="c: tokens with A < 0 and r > c are stopped (arXiv 1912.09729, equation 5, with c = 3)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip is not None and self.dual_clip <= self.upper:
            raise InputError(
                f"dual_clip is an absolute ratio and must lie beyond 1+eps_high ({self.upper:g}); "
                f"got {self.dual_clip:g} (3 is usual)"
            )

    @property
    def lower(self) -> float:
        """1 - ε_low, an absolute ratio."""
        return 1 - self.eps_low

    @property
    def upper(self) -> float:
        """1 + ε_high, an absolute ratio."""
        return 1 + self.eps_high


def clip_surrogate(x: TokenInputs, p: ClipParameters) -> Tensor:
    """J = min(r·A, clip(r, 1-ε_low, 1+ε_high)·A), and c·A where A < 0 and r > c.

    Source: PPO, arXiv 1707.06347, equation 7; the dual clip is max(J, c·A) for A < 0, arXiv 1912.09729, equation 5.
    """
    clipped = x.ratio.clamp(p.lower, p.upper) * x.advantage
    surrogate = torch.minimum(x.importance_weighted, clipped)
    if p.dual_clip is None:
        return surrogate
    return torch.where(_beyond_dual(x, p.dual_clip), p.dual_clip * x.advantage, surrogate)


def clip_weight(x: TokenInputs, p: ClipParameters) -> Tensor:
    """w = r·A where min takes the unclipped branch, exactly 0 where it takes the clipped one, a constant.

    At r exactly 1-ε_low, 1+ε_high or c, where the surrogate has a kink, the token is not stopped: w is the derivative
    from the side of 1. (Autograd's own choice there depends on how a clamp is spelled.)

    In the region RELAPSE (A < 0, r > 1+ε_high) w grows with r without bound, unless there is a dual clip.
    """
    stopped = ((x.ratio > p.upper) & (x.advantage > 0)) | ((x.ratio < p.lower) & (x.advantage < 0))
    if p.dual_clip is not None:
        stopped = stopped | _beyond_dual(x, p.dual_clip)
    return x.importance_weighted.masked_fill(stopped, 0.0)


def clip_region(x: TokenInputs, p: ClipParameters) -> Tensor:
    """The `Region` of each token (uint8): which side of the band r lies on, by the sign of A."""
    good, bad = x.advantage > 0, x.advantage < 0
    high, low = x.ratio > p.upper, x.ratio < p.lower
    region = torch.full_like(x.ratio, Region.INSIDE, dtype=torch.uint8)
    region.masked_fill_(high & good, Region.OVERSHOOT)
    region.masked_fill_(high & bad, Region.RELAPSE)
    region.masked_fill_(low & good, Region.FORGOTTEN)
    region.masked_fill_(low & bad, Region.ESCAPED)
    if p.dual_clip is not None:
        region.masked_fill_(_beyond_dual(x, p.dual_clip), Region.DUAL)
    return region.masked_fill_(x.advantage == 0, Region.NO_SIGNAL)


def _beyond_dual(x: TokenInputs, dual_clip: float) -> Tensor:
    return (x.advantage < 0) & (x.ratio > dual_clip)
