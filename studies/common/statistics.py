"""Means with intervals, paired differences and a sign test: whatever the studies say about numbers is reckoned here."""

from __future__ import annotations

import math

from dinghai.sweep.intervals import CONFIDENCE, Interval, interval, paired, t_quantile, t_within

__all__ = ["CONFIDENCE", "Interval", "interval", "paired", "sign_test", "t_quantile", "t_within"]


def sign_test(more: int, fewer: int) -> float:
    """The two-sided probability of so uneven a split, or one more uneven, if both were as likely: exact binomial.

    For pairs that share settings and seed: in how many the one has what the other has not, and the other way round.
    Pairs that agree do not count.
    """
    n = more + fewer
    tail = sum(math.comb(n, k) for k in range(min(more, fewer) + 1))
    return min(1.0, 2 * tail / 2**n)
