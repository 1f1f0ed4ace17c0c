"""Rules that bound how far the policy moved, measured as a divergence and not by each ratio: DPPO, VACO, M2PO.

Shapes: N tokens that count (packed, see layout.py). Symbols: r importance ratio, A advantage, J surrogate objective
(maximised), w the coefficient of ∇log π_new in ∇J, before the reduction's factor; p = π_new(token) and p_old =
π_old(token); sg[·] a stop-gradient.
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
from dinghai.objective.rules.score import score

INF = float("inf")


def _cap() -> Any:
    return parameter(
        5.0,
        unit="absolute ratio",
        usual=(3.0, 20.0),
        description="C: the ratio counts as min(r, C); inf: never truncated (arXiv 2602.04879, equation 23)",
    )


def _delta(default: float, unit: str, usual: tuple[float, float], side: str) -> Any:
    return parameter(default, unit=unit, usual=usual, description=f"δ: the divergence from which {side} is stopped")


_UP, _DOWN = "a token with A > 0 that became likelier", "a token with A < 0 that became rarer"


@dataclass(frozen=True)
class DppoParameters(Parameters):
    """What both forms of DPPO have. The defaults are those of the paper's scaling experiments (appendix E)."""

    delta_low: float
    delta_high: float
    cap: float = _cap()

    def warnings(self) -> list[str]:
        if self.cap >= 1:
            return []
        return [
            f"cap = {self.cap:g} is an absolute ratio and below 1: the weight of a token that did not move is already "
            f"cut to {self.cap:g} of its advantage, a smaller learning rate and nothing else; 3 to 20 is usual"
        ]


@dataclass(frozen=True)
class DppoTVParameters(DppoParameters):
    """Of DPPO-Binary-TV: a difference of probabilities, between 0 and 1."""

    delta_low: float = _delta(0.2, "probability", (0.1, 0.2), _DOWN)
    delta_high: float = _delta(0.2, "probability", (0.1, 0.2), _UP)

    def warnings(self) -> list[str]:
        idle = [name for name in ("delta_low", "delta_high") if 1 <= getattr(self, name) < INF]
        return super().warnings() + [
            f"{name} = {getattr(self, name):g} can never act: it bounds a difference of two probabilities, which stays "
            "below 1; 0.1 to 0.2 is usual, inf switches it off"
            for name in idle
        ]


@dataclass(frozen=True)
class DppoKLParameters(DppoParameters):
    """Of DPPO-Binary-KL."""

    delta_low: float = _delta(0.05, "nats", (0.05, 0.15), _DOWN)
    delta_high: float = _delta(0.05, "nats", (0.05, 0.15), _UP)


def binary_kl(logp_old_N: Tensor, logp_new_N: Tensor) -> Tensor:
    """KL(Bernoulli(p_old) || Bernoulli(p)) in nats, the token against all others: [N], [N] -> [N].

    Source: DPPO, arXiv 2602.04879, equation 14. As in its authors' code, 1e-8 is added to both 1 - p_old and 1 - p, so
    that a p that rounds to 1 has not moved infinitely far.
    """
    p_old_N = logp_old_N.exp()
    rest_old_N, rest_new_N = (-torch.expm1(logp_N) + 1e-8 for logp_N in (logp_old_N, logp_new_N))
    return p_old_N * (logp_old_N - logp_new_N) + -torch.expm1(logp_old_N) * (rest_old_N / rest_new_N).log()


def _beyond_tv(x: TokenInputs, p: DppoParameters) -> tuple[Tensor, Tensor]:
    """Beyond the lower and the upper bound: p_old - p > δ_low, p - p_old > δ_high."""
    moved_N = x.logp_new.exp() - x.logp_old.exp()
    return moved_N < -p.delta_low, moved_N > p.delta_high


def _beyond_kl(x: TokenInputs, p: DppoParameters) -> tuple[Tensor, Tensor]:
    """Beyond the lower and the upper bound: r < 1 with KL > δ_low, r > 1 with KL > δ_high."""
    kl_N = binary_kl(x.logp_old, x.logp_new)
    return (x.log_ratio < 0) & (kl_N > p.delta_low), (x.log_ratio > 0) & (kl_N > p.delta_high)


def _masked(x: TokenInputs, low_N: Tensor, high_N: Tensor, cap: float) -> Tensor:
    stopped_N = pushed_out(x.advantage, low_N=low_N, high_N=high_N) | (x.advantage == 0)
    return (x.ratio.clamp(max=cap) * x.advantage).masked_fill(stopped_N, 0.0)


def dppo_tv_weight(x: TokenInputs, p: DppoParameters) -> Tensor:
    """w = min(r, C)·A; exactly 0 where A > 0 and p - p_old > δ_high, or A < 0 and p_old - p > δ_low.

    A token exactly on a bound is not stopped.
    """
    return _masked(x, *_beyond_tv(x, p), p.cap)


def dppo_kl_weight(x: TokenInputs, p: DppoParameters) -> Tensor:
    """w = min(r, C)·A; exactly 0 where KL > δ and the token moved the way its advantage pulls.

    A token exactly on a bound is not stopped.
    """
    return _masked(x, *_beyond_kl(x, p), p.cap)


def dppo_tv_region(x: TokenInputs, p: DppoParameters) -> Tensor:
    """The `Region` of each token (uint8): p - p_old against its two bounds, by the sign of A."""
    low_N, high_N = _beyond_tv(x, p)
    return region_of(x.advantage, low_N=low_N, high_N=high_N)


def dppo_kl_region(x: TokenInputs, p: DppoParameters) -> Tensor:
    """The `Region` of each token (uint8): the divergence against the bound of its side of r = 1, by the sign of A."""
    low_N, high_N = _beyond_kl(x, p)
    return region_of(x.advantage, low_N=low_N, high_N=high_N)


_DPPO: dict[str, Any] = {
    "paper": "arXiv 2602.04879, equations 12 and 23",
    "reduction": "seq-mean-token-sum",
    "off": {"delta_low": INF, "delta_high": INF, "cap": INF},
}


@register_rule(
    "dppo_tv",
    title="DPPO-Binary-TV",
    formula="w = min(r, cap)·A, 0 where masked",
    zero="A > 0 and p - p_old > delta_high; A < 0 and p_old - p > delta_low",
    weight=dppo_tv_weight,
    region=dppo_tv_region,
    parameters=DppoTVParameters,
    **_DPPO,
)
def dppo_tv_surrogate(x: TokenInputs, p: DppoTVParameters) -> Tensor:
    """J = sg[M·min(r, C)·A]·log π_new, with M = 0 where |p - p_old| > δ and the token moved the way A pulls, else 1.

    Source: DPPO, arXiv 2602.04879, equation 12 with the binary total variation |p - p_old| of equation 13; its gradient
    in the form min(r, C) is equation 23. Appendix E sets C = 5 and δ = 0.2 (0.15 with LoRA) for the scaling
    experiments; those on stability (appendix C) have δ = 0.15 and C = ∞, and section 5.4 warns against a small C. The
    two bounds, one δ in the paper, are apart as in all implementations. Equation 12 sums over the tokens of an answer.

    The paper anchors the mask at the policy that sampled (section 5.2): give those log-probs as π_old.

    Departures: verl truncates at `clip_ratio_c`, whose default 3 hides the 20 in its code; its recipe takes δ = 0.15
    and 10,000, and it clamps log r to ±20. SkyRL has no C, and lets the gradient flow through r, which is the same
    gradient. prime-rl has no C either and adds kl_tau·(log r)², which also pulls masked tokens.
    """
    return score(dppo_tv_weight(x.held, p), x)


@register_rule(
    "dppo_kl",
    title="DPPO-Binary-KL",
    formula="w = min(r, cap)·A, 0 where masked",
    zero="A > 0, r > 1 and KL > delta_high; A < 0, r < 1 and KL > delta_low",
    weight=dppo_kl_weight,
    region=dppo_kl_region,
    parameters=DppoKLParameters,
    **_DPPO,
)
def dppo_kl_surrogate(x: TokenInputs, p: DppoKLParameters) -> Tensor:
    """J = sg[M·min(r, C)·A]·log π_new, M = 0 where KL > δ and the token moved the way A pulls, else 1.

    KL = p_old·log(p_old/p) + (1-p_old)·log((1-p_old)/(1-p)), see `binary_kl`.

    Source: DPPO, arXiv 2602.04879, equations 12, 14 and 23; δ = 0.05 and C = 5 in appendix E. All else as `dppo_tv`.

    Departures: as `dppo_tv`; prime-rl has no KL form.
    """
    return score(dppo_kl_weight(x.held, p), x)


@dataclass(frozen=True)
class VacoParameters(Parameters):
    """Of VACO."""

    budget: float = parameter(
        0.2,
        unit="mean |r-1| of a sequence",
        usual=(0.2, 2.0),
        description="δ: from a mean |r-1| above this on, a sequence stops the tokens that would raise it",
    )


def _beyond_budget(x: TokenInputs, p: VacoParameters) -> tuple[Tensor, Tensor]:
    """Tokens below and above r = 1 of the sequences whose mean |r-1| is over the budget."""
    spent_B = x.layout.mean((x.ratio.double() - 1).abs())
    over_N = x.layout.spread(spent_B > p.budget)
    return over_N & (x.log_ratio < 0), over_N & (x.log_ratio > 0)


def _kept_ratio(x: TokenInputs, low_N: Tensor, high_N: Tensor) -> Tensor:
    """M·r·A with M = 0 beyond a bound that A pulls away from: both the surrogate and its weight."""
    stopped_N = pushed_out(x.advantage, low_N=low_N, high_N=high_N)
    return x.importance_weighted.masked_fill(stopped_N, 0.0)


def vaco_weight(x: TokenInputs, p: VacoParameters) -> Tensor:
    """w = r·A; exactly 0 where A·log r > 0 and the sequence's mean |r-1| is over the budget. On it, none is stopped."""
    return _kept_ratio(x, *_beyond_budget(x, p))


def vaco_region(x: TokenInputs, p: VacoParameters) -> Tensor:
    """The `Region` of each token (uint8): the side of r = 1, where its sequence is over the budget; else INSIDE."""
    low_N, high_N = _beyond_budget(x, p)
    return region_of(x.advantage, low_N=low_N, high_N=high_N)


@register_rule(
    "vaco",
    title="VACO, sequence form (TVPO)",
    paper="arXiv 2603.01365, as in open-instruct #1681",
    formula="w = r·A, 0 where masked",
    zero="A·log r > 0 in a sequence with mean |r-1| > budget",
    weight=vaco_weight,
    region=vaco_region,
    parameters=VacoParameters,
    whole_sequences=True,
    off={"budget": INF},
)
def vaco_surrogate(x: TokenInputs, p: VacoParameters) -> Tensor:
    """J = M·r·A, M = 0 where the sequence's mean |r-1| is over δ and A·log r > 0: the token would add to it; else 1.

    Source: VACO, arXiv 2603.01365, in the form for language models that one of its authors gave to open-instruct (pull
    request 1681, there named TVPO): mean |r-1| estimates the total variation of a sequence, and no token that reduces
    it is ever masked. The paper states its filter for a batch of any reinforcement learning, with δ = 0.2. Its V-trace
    advantages are no part of the rule.

    Departures: open-instruct measures π_old / π_sampler, truncates it at 2 and multiplies it to PPO's clipped loss; its
    bound is off by default. Half of mean |r-1| is the total variation itself; open-instruct bounds the mean.
    """
    return _kept_ratio(x, *_beyond_budget(x.held, p))


@dataclass(frozen=True)
class M2poParameters(Parameters):
    """Of M2PO."""

    tau: float = parameter(
        0.04,
        unit="mean (log r)², nats²",
        usual=(0.04, 0.04),
        description="τ: tokens are masked, largest (log r)² first, until the mean of the rest is no more than this",
    )


def _second_moment(x: TokenInputs) -> tuple[Tensor, Tensor]:
    """(log r)² of each token, and which tokens the trust region is about: those that A pulls away from r = 1."""
    return x.log_ratio.double().square(), x.log_ratio * x.advantage.sign() > 0


def m2po_context(x: TokenInputs, p: M2poParameters) -> dict[str, Tensor]:
    """The (log r)² from which on tokens of the trust region are masked; inf where their mean is within τ."""
    second_moment_N, trust_region_N = _second_moment(x)
    ascending = second_moment_N[trust_region_N].sort().values
    count = torch.arange(1, len(ascending) + 1, device=ascending.device)
    kept = int((ascending.cumsum(0) / count <= p.tau).sum())  # means of the smallest 1, 2, ...: they only rise
    edges = torch.cat([ascending.new_zeros(1), ascending, ascending.new_full((1,), INF)])
    return {"threshold": edges[kept : kept + 2].mean()}  # between the last kept and the first masked


def _beyond_moment(x: TokenInputs) -> tuple[Tensor, Tensor]:
    """At r < 1 and r > 1: tokens whose (log r)² is not below the threshold."""
    far_N = _second_moment(x)[0] >= x.context["threshold"]
    return far_N & (x.log_ratio < 0), far_N & (x.log_ratio > 0)


def m2po_weight(x: TokenInputs, p: M2poParameters) -> Tensor:
    """w = r·A; exactly 0 where A·log r > 0 and (log r)² reaches the threshold of the minibatch.

    Tokens of equal (log r)² are masked together. A mean of exactly τ masks nothing.
    """
    return _kept_ratio(x, *_beyond_moment(x))


def m2po_region(x: TokenInputs, p: M2poParameters) -> Tensor:
    """The `Region` of each token (uint8): |log r| against the threshold of the minibatch, by the sign of A."""
    low_N, high_N = _beyond_moment(x)
    return region_of(x.advantage, low_N=low_N, high_N=high_N)


@register_rule(
    "m2po",
    title="M2PO",
    paper="arXiv 2510.01161, algorithm 1",
    formula="w = r·A, 0 where masked",
    zero="A·log r > 0 and (log r)² among the minibatch's largest, until their mean is within tau",
    weight=m2po_weight,
    region=m2po_region,
    parameters=M2poParameters,
    context=m2po_context,
    off={"tau": INF},
)
def m2po_surrogate(x: TokenInputs, p: M2poParameters) -> Tensor:
    """J = M·r·A; of the tokens with A·log r > 0, M = 0 for the largest (log r)² until the mean of the rest is ≤ τ.

    Source: M2PO, arXiv 2510.01161, algorithm 1, over the minibatch: only tokens of the trust region, which PPO's clip
    might stop (A > 0 and r > 1, or A < 0 and r < 1), are averaged and masked. τ = 0.04. Masked tokens stay in the
    divisor of the token mean.

    Departures: the authors' code turns the algorithm into one PPO clip for each micro-batch, at the |log r| at which
    capping, not removing, the tokens of the trust region brings their mean to τ: it masks more. AReaL masks by
    π_old / π_sampler and averages over all tokens, whatever the sign of A.
    """
    return _kept_ratio(x, *_beyond_moment(x.held))
