"""Rules for the few tokens whose log-prob and advantage covary most, those that cost entropy: Clip-Cov, KL-Cov.

Shapes: N tokens that count (packed, see layout.py). Symbols: r importance ratio, A advantage, J surrogate objective
(maximised), w the coefficient of ∇log π_new in ∇J, before the reduction's factor. Means run over the minibatch.

    Cov(t) = (log π_new(t) - mean log π_new)·(A_t - mean A)        arXiv 2505.22617, equation 10; no gradient flows

Which tokens are meant depends on the whole minibatch. So the rules measure two means and a threshold there (their
context), by which every token is judged on its own, in whatever micro-batch it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinghai.objective.inputs import TokenInputs
from dinghai.objective.parameters import Parameters, parameter
from dinghai.objective.regions import pushed_out
from dinghai.objective.registry import register_rule
from dinghai.objective.rules.band import (
    BandParameters,
    band_region,
    band_surrogate,
    band_weight,
    eps_high,
    eps_low,
)
from dinghai.objective.stats import on_grid

PAPER = "arXiv 2505.22617"
INF = float("inf")


def _share(default: float, usual: tuple[float, float], what: str) -> Any:
    return parameter(default, unit="fraction of tokens", usual=usual, at_most=1.0, description=what)


def _many(name: str, share: float, fate: str) -> list[str]:
    if share < 0.02:
        return []
    return [
        f"{name} = {share:g} is a fraction, not a percentage: {fate} {share:.0%} of all tokens; 0.0002 to 0.002 is "
        "the paper's"
    ]


@dataclass(frozen=True)
class ClipCovParameters(BandParameters):
    """Of Clip-Cov, section 4.3; ε is that of the authors' scripts."""

    eps_low: float = eps_low(1.0, usual=(0.2, 1.0))
    eps_high: float = eps_high(1.0, usual=(0.2, 1.0))
    share: float = _share(2e-4, (1e-4, 7e-4), "r: so many tokens of the minibatch are detached, at least one")
    cov_low: float = parameter(
        1.0, unit="nats times advantage", usual=(1.0, 1.0), description="ω_low: drawn from tokens with Cov of at least"
    )
    cov_high: float = parameter(
        5.0, unit="nats times advantage", usual=(5.0, 5.0), description="ω_high: drawn from tokens with Cov of at most"
    )
    seed: float = parameter(
        0, unit="any number", usual=(0, 1000), at_least=0, description="another seed draws other tokens"
    )

    def warnings(self) -> list[str]:
        sentences = _many("share", self.share, "detached are")
        if self.cov_low > self.cov_high and self.cov_low < INF:
            sentences.append(
                f"cov_low = {self.cov_low:g} is above cov_high = {self.cov_high:g}: no token lies between, so none is "
                "ever detached; 1 and 5 are usual"
            )
        return sentences


@dataclass(frozen=True)
class KLCovParameters(Parameters):
    """Of KL-Cov, section 4.3, with the share of the 7B model."""

    share: float = _share(
        2e-3, (2e-4, 2e-3), "k: so many tokens, those of the highest Cov in the minibatch, at least one"
    )
    kl_coef: float = parameter(
        1.0, unit="advantage per nat", usual=(0.05, 1.0), at_least=0.0, description="β: what the penalty |log r| weighs"
    )

    def warnings(self) -> list[str]:
        return _many("share", self.share, "penalised are")


def _means(x: TokenInputs) -> dict[str, Tensor]:
    """Of log π_new and A over the minibatch: sums that no order of the tokens changes."""
    tokens = max(x.layout.tokens, 1)
    return {
        "mean_logp": on_grid(x.logp_new.detach()).sum() / tokens,
        "mean_advantage": on_grid(x.advantage).sum() / tokens,
    }


def covariance(x: TokenInputs, context: Any) -> Tensor:
    """Cov of each token, by the means in the context: [N], float64."""
    logp_new_N = x.held.logp_new.double()
    return (logp_new_N - context["mean_logp"]) * (x.advantage.double() - context["mean_advantage"])


_32_BITS = 0xFFFFFFFF


def _mix(h_N: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that turns any pattern into noise; the factors stay below 2^31, so int64 holds all.

    Source: two rounds of xor-shift and multiply, with the constants of the hash-prospector project.
    """
    h_N = h_N ^ (h_N >> 16)
    h_N = (h_N * 0x21F0AAAD) & _32_BITS
    h_N = h_N ^ (h_N >> 15)
    h_N = (h_N * 0x735A2D97) & _32_BITS
    return h_N ^ (h_N >> 15)


def lot(x: TokenInputs, seed: float) -> Tensor:
    """A number in [0, 1) for each token, drawn from what the token is (log π_new, log π_old, A) and the seed: [N].

    So a draw can be repeated from a record, and knows nothing of order, padding or micro-batches. Tokens that agree in
    all three draw the same number; log-probs that were rounded otherwise, as in a row of another length, draw others.
    float64, from the bits of float32.
    """
    hash_N = torch.zeros_like(x.advantage, dtype=torch.int64)
    seed_N = torch.full_like(x.advantage, seed)
    for column_N in (seed_N, x.held.logp_new, x.logp_old, x.advantage):
        bits_N = (column_N.float() + 0.0).view(torch.int32).long() & _32_BITS  # + 0.0 makes -0 the same as 0
        hash_N = _mix(hash_N ^ bits_N)
    return hash_N.double() / 2**32


def _quota(share: float, tokens: int) -> int:
    return max(int(share * tokens), 1)


def _candidates(x: TokenInputs, p: ClipCovParameters, context: Any) -> Tensor:
    """Cov in [ω_low, ω_high], and not stopped by PPO's clip anyway."""
    cov_N, held = covariance(x, context), x.held
    clipped_N = pushed_out(x.advantage, low_N=held.ratio < p.lower, high_N=held.ratio > p.upper)
    return (cov_N >= p.cov_low) & (cov_N <= p.cov_high) & ~clipped_N


def clip_cov_context(x: TokenInputs, p: ClipCovParameters) -> dict[str, Tensor]:
    """The means, and the lot up to which candidates are detached: that of the ⌊share·N⌋-th, at least of the first."""
    means = _means(x)
    if x.layout.tokens == 0:
        return means | {"lot": x.advantage.new_zeros((), dtype=torch.float64)}
    lot_N = lot(x, p.seed).masked_fill(~_candidates(x, p, means), INF)  # fewer candidates than that: all of them
    return means | {"lot": lot_N.kthvalue(_quota(p.share, x.layout.tokens)).values}


def _detached(x: TokenInputs, p: ClipCovParameters) -> Tensor:
    return _candidates(x, p, x.context) & (lot(x, p.seed) <= x.context["lot"])


def clip_cov_weight(x: TokenInputs, p: ClipCovParameters) -> Tensor:
    """w = r·A; exactly 0 where PPO's clip stops the token, and where it was drawn, at whatever ratio.

    Exactly on a bound of the band, a token is not stopped. Exactly on a bound of Cov, it may be drawn.
    """
    return band_weight(x, p.lower, p.upper).masked_fill(_detached(x, p), 0.0)


def clip_cov_region(x: TokenInputs, p: ClipCovParameters) -> Tensor:
    """The `Region` of each token (uint8) by PPO's band. A token that was drawn is stopped in its region."""
    return band_region(x, p.lower, p.upper)


@register_rule(
    "clip_cov",
    title="Clip-Cov",
    paper=f"{PAPER}, equations 10 to 12",
    formula="w = r·A, 0 where clipped or drawn",
    zero="as PPO with eps; and a random share of the tokens with Cov between cov_low and cov_high",
    weight=clip_cov_weight,
    region=clip_cov_region,
    parameters=ClipCovParameters,
    context=clip_cov_context,
    off={"eps_low": INF, "eps_high": INF, "cov_low": INF},
    breaks={"on-policy-reinforce": "tokens drawn for their covariance are detached at r = 1 too"},
)
def clip_cov_surrogate(x: TokenInputs, p: ClipCovParameters) -> Tensor:
    """J = min(r·A, clip(r, 1-ε_low, 1+ε_high)·A), and a constant for tokens drawn at random among those of high Cov.

    Source: arXiv 2505.22617, equations 10 to 12 and Listing 1: r·N tokens are drawn, uniformly, of those whose Cov lies
    in [ω_low, ω_high]. Section 4.3: r = 2e-4, ω_low = 1, ω_high = 5. Equation 12 has no clip; Listing 1 has, and the
    authors' scripts set its ε to 1. As in their code, at least one token is drawn, and only tokens that the clip leaves
    alone. The reduction of their scripts is token-mean.

    Departures: here the lot of a token is a hash of the token itself (see `lot`), and Cov is that of the minibatch.
    verl and SkyRL draw with torch.randperm, within each micro-batch, so that the share depends on its size; their
    bounds of Cov are open, their ε is 0.2 by default, and their clip fraction counts the tokens drawn only, not those
    that the clip stopped.
    """
    return band_surrogate(x, p.lower, p.upper).masked_fill(_detached(x, p), 0.0)


def kl_cov_context(x: TokenInputs, p: KLCovParameters) -> dict[str, Tensor]:
    """The means, and the Cov from which on tokens are penalised: ⌊share·N⌋ of them, at least one."""
    means, tokens = _means(x), x.layout.tokens
    quota = _quota(p.share, tokens)
    if quota >= tokens:
        return means | {"cov": x.advantage.new_full((), -INF, dtype=torch.float64)}
    last, next_best = covariance(x, means).topk(quota + 1).values[-2:]
    return means | {"cov": (last + next_best) / 2}  # between two tokens, so that no rounding decides


def _penalised(x: TokenInputs) -> Tensor:
    return covariance(x, x.context) >= x.context["cov"]


def kl_cov_weight(x: TokenInputs, p: KLCovParameters) -> Tensor:
    """w = r·A, and r·A - β·sign(log r) for the tokens of the highest Cov; at r = 1, the kink of |log r|, r·A.

    A token with A = 0 that is among them keeps the penalty, though its region is NO_SIGNAL: the paper meets none, since
    it leaves out prompts whose answers all score alike.
    """
    pull_N = p.kl_coef * x.log_ratio.sign()
    return x.importance_weighted - pull_N.masked_fill(~_penalised(x), 0.0)


@register_rule(
    "kl_cov",
    title="KL-Cov",
    paper=f"{PAPER}, equations 10, 13 and 14",
    formula="w = r·A - kl_coef·sign(log r) for the highest Cov, else r·A",
    zero="never",
    weight=kl_cov_weight,
    parameters=KLCovParameters,
    context=kl_cov_context,
    off={"kl_coef": 0.0},
)
def kl_cov_surrogate(x: TokenInputs, p: KLCovParameters) -> Tensor:
    """J = r·A, and r·A - β·|log r| for the share k of the tokens with the highest Cov. There is no clip.

    Source: arXiv 2505.22617, equations 10, 13 and 14; |log r| stands for the KL divergence from π_old, as in Listing 1.
    Section 4.3: β = 1, k = 2e-3 for the 7B model and 2e-4 for the 32B one. At least one token is penalised, as in the
    authors' code; tokens of equal Cov share their fate. The reduction of their scripts is token-mean.

    Departures: verl's default is k = 2e-4 with β = 0.1, and `actor/ppo_kl` is then the mean of |log r|. SkyRL's default
    of 0.2 is the percentage of the authors' script taken for a fraction: a hundred times as many tokens. Both rank
    within each micro-batch.
    """
    penalty_N = p.kl_coef * x.log_ratio.abs()
    return x.importance_weighted - penalty_N.masked_fill(~_penalised(x), 0.0)
