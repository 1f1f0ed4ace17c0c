"""Means with intervals, and paired differences: all that the studies say about numbers goes through here.

Symbols: ν degrees of freedom, t Student's t, n how many seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over n values and its t-interval. Of fewer than two values there is none: low and high are NaN."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high < 0


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean and its two-sided t-interval: mean ± t·s/√n, s with n-1.

    Raises:
        ValueError: there are no values, or one of them is not finite.
    """
    n = len(values)
    if n == 0 or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval needs finite values, got {list(values)}")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1, confidence) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(one: Mapping[int, float], other: Mapping[int, float], confidence: float = CONFIDENCE) -> Interval:
    """The interval of one - other over the seeds that both have: {seed: value} each.

    Raises:
        ValueError: they have no seed in common.
    """
    return interval([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())], confidence)


@cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which P(|T| < t) = confidence, to 12 digits, by bisection of `t_within`."""
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"t_quantile needs degrees >= 1 and 0 < confidence < 1, got {degrees} and {confidence}")
    low, high = 0.0, 1.0
    while t_within(high, degrees) < confidence:
        high *= 2
    for _ in range(60):  # halves the width each time, down to what float64 tells apart
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def t_within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's t with whole degrees of freedom: a finite sum.

    Source: Abramowitz and Stegun, 26.7.3 (ν odd) and 26.7.4 (ν even), θ = arctan(t/√ν).
    """
    theta = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, terms = (cosine, []) if odd else (1.0, [])
    for k in range(2 if odd else 1, degrees, 2):
        terms.append(term)
        term *= cosine**2 * k / (k + 1)
    total = sine * math.fsum(terms)
    return 2 / math.pi * (theta + total) if odd else total


def sign_test(more: int, fewer: int) -> float:
    """The two-sided probability of so uneven a split, or one more uneven, if both were as likely: exact binomial.

    For pairs that share settings and seed: in how many the one has what the other has not, and the other way round.
    Pairs that agree do not count.
    """
    n = more + fewer
    tail = sum(math.comb(n, k) for k in range(min(more, fewer) + 1))
    return min(1.0, 2 * tail / 2**n)
