"""The clip of each token inside a geometric mean over its sequence: GMPO.

Shapes: N tokens that count (packed, see layout.py). Symbols: r_t importance ratio of a token, |y| tokens of its
sequence, A advantage, J surrogate objective (maximised), w the coefficient of ∇log π_new in ∇J, before the reduction's
factor; sg[·] a stop-gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinghai.objective.inputs import TokenInputs
from dinghai.objective.parameters import Parameters, parameter
from dinghai.objective.regions import pushed_out, region_of
from dinghai.objective.registry import register_rule


def _log_bound(side: str) -> Any:
    return parameter(
        0.4,
        unit="log-ratio, nats",
        usual=(0.2, 0.8),
        description=f"the band of log r {side}; 0.4 is r between 0.67 and 1.49",
    )


@dataclass(frozen=True)
class GmpoParameters(Parameters):
    """Of GMPO: e^±0.4, wider than a clip of ratios, since the mean tames outliers."""

    eps_low: float = _log_bound("begins at -eps_low")
    eps_high: float = _log_bound("ends at eps_high")


def _clipped_log_ratio(x: TokenInputs, p: GmpoParameters) -> Tensor:
    """log r_t, at most ε_high where A > 0, at least -ε_low elsewhere: the min of PPO in log space."""
    return torch.where(x.advantage > 0, x.log_ratio.clamp(max=p.eps_high), x.log_ratio.clamp(min=-p.eps_low))


def _geometric_mean(x: TokenInputs, p: GmpoParameters) -> Tensor:
    """ρ = exp((1/|y|) Σ_y clipped log r), of each token's sequence."""
    mean_B = x.layout.mean(_clipped_log_ratio(x, p).double())  # float64: a sum over thousands of tokens
    return x.layout.spread(mean_B).exp().to(x.ratio.dtype)


def gmpo_weight(x: TokenInputs, p: GmpoParameters) -> Tensor:
    """w = ρ·A, the same for all tokens of a sequence but those that are clipped, which have exactly 0.

    A token exactly on a bound is not stopped.
    """
    stopped_N = pushed_out(x.advantage, low_N=x.log_ratio < -p.eps_low, high_N=x.log_ratio > p.eps_high)
    return torch.where(stopped_N | (x.advantage == 0), 0.0, _geometric_mean(x, p) * x.advantage)


def gmpo_region(x: TokenInputs, p: GmpoParameters) -> Tensor:
    """The `Region` of each token (uint8): which side of the band its own log r lies on, by the sign of A."""
    return region_of(x.advantage, low_N=x.log_ratio < -p.eps_low, high_N=x.log_ratio > p.eps_high)


@register_rule(
    "gmpo",
    title="GMPO",
    paper="arXiv 2507.20673, equation 4",
    formula="w = ρ·A, 0 where clipped; ρ the geometric mean of the clipped r",
    zero="A > 0 and log r > eps_high; A < 0 and log r < -eps_low",
    weight=gmpo_weight,
    region=gmpo_region,
    parameters=GmpoParameters,
    reduction="seq-mean-token-mean",
    whole_sequences=True,
)
def gmpo_surrogate(x: TokenInputs, p: GmpoParameters) -> Tensor:
    """J_t = ρ·A for each token of a sequence, ρ = exp((1/|y|) Σ_t c_t), c_t = log r_t clipped by the sign of A.

    Source: GMPO, arXiv 2507.20673 (version 3), equation 4 and algorithm 1; ε = 0.4. The mean over the tokens of an
    answer, then over answers, is the paper's objective, and its gradient is equation 6 with clipped tokens left out.

    The gradient is taken token by token, J_t = sg[ρ]·A_t·exp(c_t - sg[c_t]). Where a sequence has one advantage, which
    is the paper's case, that is the gradient through ρ; where advantages differ, each token has its own.

    Departures: TRL's `GMPOTrainer` is the same. verl's `geo_mean` takes ε = clip_ratio, 0.2 by default, and the mean
    advantage of the sequence; it divides by |y| + 1e-8, and by the rows of a micro-batch instead of the whole step.
    """
    held = x.held
    moved_N = _clipped_log_ratio(x, p) - _clipped_log_ratio(held, p)
    surrogate_N = _geometric_mean(held, p) * x.advantage * moved_N.exp()
    return torch.where(x.advantage == 0, 0.0, surrogate_N)
