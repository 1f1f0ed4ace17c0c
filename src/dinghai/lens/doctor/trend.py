"""Whether a series has changed from its beginning to its end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from dinghai.lens.series import Row, last_tenth, weighted_mean
from dinghai.lens.words import counted

FEWEST = 15
"""Values from which on a fifth of them has a mean and a scatter."""


class ChangeOfMeans(NamedTuple):
    """From the mean of the first fifth to that of the last fifth."""

    first: float
    last: float
    sigmas: float  # their difference in standard errors, by the scatter within the two (Welch)


def change_of_means(values: Sequence[float]) -> ChangeOfMeans | None:
    """None for fewer values than `FEWEST`."""
    if len(values) < FEWEST:
        return None
    number = len(values) // 5
    first, last = values[:number], values[-number:]
    noise = math.sqrt((statistics.variance(first) + statistics.variance(last)) / number)
    begin, end = statistics.fmean(first), statistics.fmean(last)
    if begin == end:
        return ChangeOfMeans(begin, end, 0.0)
    return ChangeOfMeans(begin, end, (end - begin) / noise if noise > 0 else math.copysign(math.inf, end - begin))


def whole_or_end(rows: Sequence[Row], key: str) -> tuple[float, str]:
    """The mean over all steps, or over the last ones where it is higher; and what these are called."""
    end = last_tenth(rows)
    whole, late = (weighted_mean(part, key, weight=None) or 0.0 for part in (rows, end))
    return (whole, "") if whole >= late else (late, f"last {counted(len(end), 'step')}")


def accuracy_noise(first: float, last: float, problems: int) -> float:
    """Standard error of the difference of two accuracies, as if each had been measured on problems of its own.

    They are measured on the same ones, where it is smaller: so what is called a change is one.
    """
    return math.sqrt((_variance(first) + _variance(last)) / problems)


def _variance(share: float) -> float:
    return max(share * (1 - share), 0.0)
