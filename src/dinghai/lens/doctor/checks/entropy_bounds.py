"""Which bound of the rule moved the entropy, and by how much: to first order, from the trace. Shapes: N tokens.

A gradient step of weight w on token a moves the logits of its distribution p along w·(e_a - p), and so its entropy H by

    w · (-p_a (log p_a + H) + Σ_j p_j² (log p_j + H))

for each unit of step size. The trace has p_a and H. The sum over the vocabulary, which it has not, is what the first
term averages to over the tokens that p draws; it is taken as that mean over tokens of like entropy in the same update,
weighted by their ratios since π_old drew them. (The first term by itself would have the wrong sign for either bound.)
What the logits of one token do to those of others is left out. On the built-in task the push of a batch's first epoch
and the change of entropy at the same tokens from that epoch to the next correlate by 0.5 to 0.85 over the steps of a
run, and their signs agree in more than 9 steps of 10 (six runs, four rules).

That clipping below raises the entropy and clipping above lowers it is the finding of arXiv 2509.26114.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check
from dinghai.lens.doctor.finding import Evidence, Place
from dinghai.lens.tokens import Tokens

CHECKS: tuple[Check, ...] = ()  # the attribution is evidence of the check of the entropy itself

_ENTROPY_BINS = 64  # of equally many tokens each
_LEAST_TOKENS = 200  # of an update: fewer say nothing about the mean over tokens of like entropy
_LEAST_PART = 0.02  # of all that pushed: less is within the error of the estimate


@dataclass(frozen=True)
class EntropyPush:
    """How the gradient pushes the entropy, in nats for each unit of step size: sums over tokens, which add up.

    applied: by the weights that the rule left. upper, lower: by what it took away from tokens above and below r = 1;
    so the upper bound itself changed the push by -upper, and the lower by -lower.
    """

    applied: float
    upper: float
    lower: float
    size: float  # sum of the sizes of each token's push, without the rule: what the others are measured by

    def __add__(self, other: EntropyPush) -> EntropyPush:
        return EntropyPush(
            self.applied + other.applied,
            self.upper + other.upper,
            self.lower + other.lower,
            self.size + other.size,
        )


def entropy_push(tokens: Tokens) -> EntropyPush | None:
    """Of the tokens of one update; None where they are too few, or their entropies are not known."""
    with np.errstate(all="ignore"):
        p_N = np.exp(tokens.logp_new.astype(np.float64))
        first_N = -p_N * (tokens.logp_new.astype(np.float64) + tokens.entropy)
        ratio_N = np.exp(tokens.logp_new.astype(np.float64) - tokens.logp_old)
    known_N = tokens.scored & np.isfinite(first_N) & np.isfinite(ratio_N)
    if known_N.sum() < _LEAST_TOKENS:
        return None
    tokens, first_N, ratio_N = tokens.rows(np.flatnonzero(known_N)), first_N[known_N], ratio_N[known_N]
    lever_N = (first_N - _expected(first_N, ratio_N, tokens.entropy)) * tokens.factor
    left_N = np.where(np.isfinite(tokens.weight), tokens.weight, 0).astype(np.float64)
    full_N = np.where(np.isfinite(tokens.weight_unclipped), tokens.weight_unclipped, 0).astype(np.float64)
    taken_N = np.where(tokens.removed > 0, full_N - left_N, 0.0)
    above_N, below_N = tokens.log_ratio > 0, tokens.log_ratio < 0
    return EntropyPush(
        applied=float(lever_N @ left_N),
        upper=float(lever_N[above_N] @ taken_N[above_N]),
        lower=float(lever_N[below_N] @ taken_N[below_N]),
        size=float(np.abs(lever_N) @ np.abs(full_N)),
    )


def _expected(first_N: np.ndarray, ratio_N: np.ndarray, entropy_N: np.ndarray) -> np.ndarray:
    """[N] the mean of the first term that π_new's own draws would have, among tokens of like entropy."""
    order = np.argsort(entropy_N, kind="stable")
    bin_N = np.empty(len(order), dtype=np.int64)
    bin_N[order] = np.arange(len(order)) * min(_ENTROPY_BINS, len(order) // 20) // len(order)
    weights = np.bincount(bin_N, ratio_N)
    means = np.bincount(bin_N, ratio_N * first_N) / np.where(weights > 0, weights, 1)
    return means[bin_N]


def push_of_steps(case: Case, steps: Sequence[int]) -> EntropyPush | None:
    """The sum over all updates of the steps; None where the trace says nothing of them."""
    total: EntropyPush | None = None
    for step in steps:
        tokens = case.tokens(step)
        if tokens is None:
            continue
        for update in np.unique(tokens.update):
            push = entropy_push(tokens.rows(np.flatnonzero(tokens.update == update)))
            if push is not None:
                total = push if total is None else total + push
    return total


def attribution(case: Case, steps: Sequence[int]) -> Evidence | None:
    """How each bound moved the entropy in these steps; None where the trace does not say, or neither moved it.

    steps: recorded ones, as `case.steps` has them; others are passed over.
    """
    looked = [step for step in steps if step in set(case.steps)]
    push = push_of_steps(case, looked)
    if push is None or not push.size > 0:
        return None
    bounds = [(name, -taken / push.size) for name, taken in (("upper", push.upper), ("lower", push.lower))]
    acting = [(name, moved) for name, moved in bounds if abs(moved) >= _LEAST_PART]
    if not acting:
        return None
    parts = [f"the {name} bound {'raises' if moved > 0 else 'lowers'} it by {abs(moved):.1%}" for name, moved in acting]
    applied = push.applied / push.size
    return Evidence(
        f"to first order, in shares of all that the tokens would push it without the rule, {' and '.join(parts)}, and "
        f"what is left of the gradient {'raises' if applied > 0 else 'lowers'} it by {abs(applied):.1%}; "
        + _advice(dict(acting)),
        Place(step=looked[-1]),
    )


def _advice(acting: dict[str, float]) -> str:
    """Which bound to move for more entropy."""
    strongest = max(acting, key=lambda name: abs(acting[name]))
    setting = {"upper": "objective.eps_high", "lower": "objective.eps_low"}[strongest]
    raises = acting[strongest] > 0
    return f"a {'smaller' if raises else 'larger'} {setting} makes for more entropy"
