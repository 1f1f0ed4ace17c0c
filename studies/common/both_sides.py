"""A rule for a comparison: every token outside the band is stopped, whatever the sign of its advantage.

    dinghai train --rule-file studies/common/both_sides.py --objective.rule both_sides

It is what "the gradient is clipped to 1-ε … 1+ε" would be if it were taken at its word. The clip of PPO stops
`overshoot` and `escaped` alone; this one also `relapse` and `forgotten`, the tokens that would be pulled back.

Shapes: N tokens that count. Symbols: r importance ratio, A advantage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinghai.objective import TokenInputs, region_of, register_rule
from dinghai.objective.rules.band import BandParameters


def both_sides_weight(x: TokenInputs, p: BandParameters) -> Tensor:
    """w = r·A within the band, exactly 0 outside it; on a bound a token is not stopped."""
    outside_N = (x.ratio < p.lower) | (x.ratio > p.upper)
    return x.importance_weighted.masked_fill(outside_N, 0.0)


def both_sides_region(x: TokenInputs, p: BandParameters) -> Tensor:
    """Those of the clip: all four regions outside the band are stopped."""
    return region_of(x.advantage, low_N=x.ratio < p.lower, high_N=x.ratio > p.upper)


@register_rule(
    "both_sides",
    title="Clipped on both sides",
    paper="a comparison, not published",
    formula="w = r·A within the band, 0 outside it",
    zero="r > 1+eps_high or r < 1-eps_low, whatever the sign of A",
    weight=both_sides_weight,
    region=both_sides_region,
    parameters=BandParameters,
    off={"eps_low": float("inf"), "eps_high": float("inf")},
)
def both_sides_surrogate(x: TokenInputs, p: BandParameters) -> Tensor:
    """J = clip(r, 1-ε_low, 1+ε_high)·A, without PPO's min: a constant outside the band for either sign of A."""
    return torch.where(x.advantage == 0, 0.0, x.ratio.clamp(p.lower, p.upper) * x.advantage)
