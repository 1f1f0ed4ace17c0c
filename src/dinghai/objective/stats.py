"""Statistics of a batch as sums that add up exactly, over micro-batches, minibatches, epochs and ranks.

Shapes: N tokens that count (packed, see layout.py), R regions, K sums.

A mean of means is wrong as soon as the parts differ in size. So a `Stats` holds sums and counts only, `+` adds them,
and `metrics()` divides once, at the end. The sums are equal bit for bit in whatever order and split they were added.

What is measured of log-probs (KL, ratio, largest log-ratio) is summed over the tokens with a signal, A != 0. The others
need not be scored at all, and whether they were changes no statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.decision import Decision, Effect, Region
from dinghai.objective.inputs import TokenInputs
from dinghai.objective.kl import k1, k3

BY_REGION = ("tokens", "weight", "weight_removed", "gradient", "gradient_removed")
SCALARS = (
    "sequences",  # with at least one token that counts
    "nonfinite_tokens",  # the advantage or the weight is NaN or infinite or, with a signal, a log-prob
    "factor",  # Σ f_t
    "surrogate",  # Σ f_t·J_t
    "kl_old_new_k1",
    "kl_old_new_k3",
    "ratio_excess",  # Σ (r - 1): small addends keep their digits, and Σ r is the tokens with a signal + this
    "ratio_excess_squared",  # Σ (r - 1)²
    "kl_ref",
    "kl_ref_tokens",
)
SUMS = (
    *(f"{what}/{region.name.lower()}" for region in Region for what in BY_REGION),
    *(f"effect/{effect.name.lower()}" for effect in Effect),
    *SCALARS,
)

# Addition of float64 is exact, and so free of order, as long as all addends are multiples of one power of two and no
# partial sum needs more than 53 bits: with this grid (1e-9), below 2^22 in absolute value. Each addend is rounded to it
# once, which is an error far below that of float32. Beyond 2^22 sums stay as accurate as float64 always is, but may
# depend on the order in the last digit. Rounding leaves NaN and infinity what they are.
GRID = 2.0**-30


def on_grid(x: Tensor) -> Tensor:
    """x in float64, rounded to the nearest multiple of 2^-30."""
    return (x.double() / GRID).round_().mul_(GRID)


@dataclass(frozen=True)
class Stats:
    """Sums over the tokens that count. To merge ranks, all-reduce `sums` with SUM and `maxima` with MAX."""

    sums: Tensor  # [K] float64 on the loss's device, named by SUMS
    maxima: Tensor  # [1] float64: the largest |log π_new - log π_old| where A != 0
    kl: str | None = None  # name of the estimator in `kl_ref`

    def __add__(self, other: Stats) -> Stats:
        """The statistics of both batches together."""
        if self.kl and other.kl and self.kl != other.kl:
            raise InputError(f"cannot add statistics of the KL estimators {self.kl} and {other.kl}")
        return Stats(self.sums + other.sums, torch.maximum(self.maxima, other.maxima), self.kl or other.kl)

    def __radd__(self, other: object) -> Stats:
        """So that the built-in `sum` works, which begins with 0."""
        return self if other == 0 else NotImplemented

    def metrics(self) -> dict[str, float]:
        """Divided sums, by name. One transfer from the device.

        Over the tokens that count:
            tokens, signal_tokens       how many there are, and how many of them have A != 0
            nonfinite_tokens            with a NaN or infinity in advantage or weight or, where A != 0, in log-probs
            region/<name>_fraction, effect/<name>_fraction
            surrogate_mean              Σ f_t·J_t / Σ f_t; f_t is the factor of the reduction, so for token-mean and
                                        seq-mean-token-mean it is minus the policy part of the loss
            kl_ref_<estimator>          of π_new from the reference in nats, if asked for
        Over the tokens with A != 0:
            stopped_fraction            the weight is exactly 0
            band_fraction               the ratio is outside the band, whether or not the gradient is stopped: what most
                                        frameworks call clip fraction. Tokens that a rollout correction dropped are
                                        stopped, but not counted here
            kl_old_new_k1, _k3          KL(π_old || π_new) in nats, from each token's own log-ratio: unbiased for tokens
                                        drawn from π_old; k1 may be negative
            ratio_mean                  of the ratio that the rule saw (of the token, or of its sequence)
            ess_fraction                effective sample size (Σr)² / (n Σr²); 1 where all ratios agree
            log_ratio_abs_max           largest |log π_new - log π_old| of a token
        Shares of the gradient that no rule would have given, Σ f_t·removed / Σ f_t·unclipped:
            weight_removed/<region>     of |w0| = |r·A|, removed = max(0, |w0| - max(0, w·sign(w0)))
            weight_removed/total
            gradient_removed/<region>   the same of |w0|·(1-p), p = π_new(token). The gradient at the logits has the
            gradient_removed/total      norm |w|·‖e_token - π‖, which lies within [1, √2] times |w|·(1-p)
            weight_unclipped, gradient_unclipped
                                        the sums that these are shares of: Σ f_t·|w0| and Σ f_t·|w0|·(1-p). Shares of
                                        several steps are averaged with them as weights

        A fraction of the tokens with A != 0, or of the gradient, is 0.0 where there is none: nothing was taken away.
        What is measured of log-probs, from kl_old_new on, is left out there. Without any token only the three counts
        are given.
        """
        *values, log_ratio_abs_max = torch.cat([self.sums, self.maxima]).tolist()
        s = dict(zip(SUMS, values, strict=True))
        n = sum(s[f"tokens/{name}"] for name in _REGIONS)
        signal = n - s["tokens/no_signal"]
        metrics = {"tokens": n, "signal_tokens": signal, "nonfinite_tokens": s["nonfinite_tokens"]}
        if n == 0:
            return metrics
        metrics["stopped_fraction"] = _share(s["effect/stopped"], signal)
        metrics["band_fraction"] = _share(signal - s["tokens/inside"] - s["tokens/dropped"], signal)
        metrics |= {f"region/{name}_fraction": s[f"tokens/{name}"] / n for name in _REGIONS}
        metrics |= {f"effect/{e.name.lower()}_fraction": s[f"effect/{e.name.lower()}"] / n for e in Effect}
        metrics |= _removed(s, "weight") | _removed(s, "gradient")
        metrics["surrogate_mean"] = s["surrogate"] / s["factor"]
        if s["kl_ref_tokens"] > 0:
            metrics[f"kl_ref_{self.kl}"] = s["kl_ref"] / s["kl_ref_tokens"]
        if signal == 0:
            return metrics
        metrics |= {"kl_old_new_k1": s["kl_old_new_k1"] / signal, "kl_old_new_k3": s["kl_old_new_k3"] / signal}
        ratio_sum = signal + s["ratio_excess"]
        square_sum = signal + 2 * s["ratio_excess"] + s["ratio_excess_squared"]
        metrics["ratio_mean"] = ratio_sum / signal
        metrics["ess_fraction"] = _share(ratio_sum * ratio_sum, signal * square_sum)
        metrics["log_ratio_abs_max"] = log_ratio_abs_max
        return metrics


def collect(
    x: TokenInputs,
    decision: Decision,
    surrogate_N: Tensor,
    factor_N: Tensor,
    kl_ref_N: Tensor | None = None,
    kl: str | None = None,
) -> Stats:
    """The sums of one batch, from its packed record.

    Args:
        decision: packed, [N]. surrogate_N: J. factor_N: f_t of the reduction. kl_ref_N: value of the estimator `kl`.
    """
    silent_N = decision.advantage == 0
    # Of each token, also where the rule acts on sequences; that of r = 1 where there is nothing to measure.
    log_ratio_N = (x.logp_new - x.logp_old).double().masked_fill(silent_N, 0.0)
    excess_N = (decision.ratio.double() - 1).masked_fill(silent_N, 0.0)
    scored_N = torch.stack([x.logp_new, x.logp_old]).isfinite().all(dim=0) | silent_N
    finite_N = scored_N & decision.advantage.isfinite() & decision.weight.isfinite()
    no_kl_N = torch.zeros_like(excess_N)
    per_token_AN = torch.stack(
        [
            (~finite_N).double(),
            factor_N,
            factor_N * surrogate_N,
            k1(-log_ratio_N),  # these estimators expect log π - log π' for tokens drawn from π, here π_old
            k3(-log_ratio_N),
            excess_N,
            excess_N.square(),
            no_kl_N if kl_ref_N is None else kl_ref_N.double(),  # its penalty acts on tokens without a signal too
            no_kl_N if kl_ref_N is None else torch.ones_like(excess_N),
        ]
    )
    sums = [
        _by_region(x, decision, factor_N),
        _count(decision.effect, len(Effect)),
        x.layout.sequences.double().reshape(1),
        on_grid(per_token_AN).sum(dim=1),
    ]
    maximum = torch.cat([log_ratio_N.new_zeros(1), log_ratio_N.abs()]).amax(dim=0, keepdim=True)
    return Stats(torch.cat(sums), maximum, kl)


_REGIONS = tuple(region.name.lower() for region in Region if region is not Region.MASKED)


def _by_region(x: TokenInputs, decision: Decision, factor_N: Tensor) -> Tensor:
    """The sums BY_REGION, region after region: [R * 5]."""
    unclipped_N = decision.weight_unclipped.double()
    along_N = (decision.weight.double() * unclipped_N.sign()).clamp(min=0)  # what is left, if it points the same way
    removed_N = (unclipped_N.abs() - along_N).clamp(min=0)
    norm_N = -torch.expm1(x.logp_new.double().clamp(max=0))  # 1 - p, without cancellation where p is near 1
    norm_N = norm_N.masked_fill(decision.advantage == 0, 0.0)  # not NaN, where π_new is unknown
    weight_N = factor_N * unclipped_N.abs()
    columns_N5 = torch.stack(
        [torch.ones_like(weight_N), weight_N, factor_N * removed_N, weight_N * norm_N, factor_N * removed_N * norm_N],
        dim=1,
    )
    # Exact addends make index_add deterministic on a GPU as well, where its order is not.
    sums_R5 = columns_N5.new_zeros(len(Region), len(BY_REGION))
    return sums_R5.index_add_(0, decision.region.long(), on_grid(columns_N5)).reshape(-1)


def _count(labels_N: Tensor, kinds: int) -> Tensor:
    ones_N = torch.ones_like(labels_N, dtype=torch.float64)
    return ones_N.new_zeros(kinds).index_add_(0, labels_N.long(), ones_N)


def _removed(s: dict[str, float], what: str) -> dict[str, float]:
    total = sum(s[f"{what}/{name}"] for name in _REGIONS)
    removed = {name: s[f"{what}_removed/{name}"] for name in _REGIONS}
    shares = {f"{what}_removed/{name}": _share(value, total) for name, value in removed.items()}
    return shares | {f"{what}_removed/total": _share(sum(removed.values()), total), f"{what}_unclipped": total}


def _share(part: float, whole: float) -> float:
    """part / whole, and 0.0 for a share of nothing; NaN and infinity go through."""
    if whole == 0:
        return 0.0 if part == 0 else math.nan
    return part / whole
