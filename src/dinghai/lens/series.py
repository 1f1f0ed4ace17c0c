"""Numbers out of the rows of a metrics file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Row = Mapping[str, Any]


def is_number(row: Row, key: str) -> bool:
    """Whether the row has the metric as a number; NaN and infinity are numbers too."""
    value = row.get(key)
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(row: Row, key: str) -> bool:
    """As `is_number`, without NaN and infinity."""
    return is_number(row, key) and math.isfinite(row[key])


def steps_and_values(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """(step, value) of each row in which the metric is finite."""
    return [(row["step"], row[key]) for row in rows if is_finite(row, key)]


def weighted_mean(rows: Sequence[Row], key: str, weight: str | None = "tokens/signal") -> float | None:
    """The mean of a metric over steps, each counting as much as its number of tokens with a signal.

    Steps without the metric, or where it is not finite, are left out; None where none is left. Records without token
    counts count each step once.
    """
    pairs = [
        (row[key], row[weight] if weight and is_number(row, weight) else (0.0 if weight and weight in row else 1.0))
        for row in rows
        if is_finite(row, key)
    ]
    total = sum(share for _, share in pairs)
    return sum(value * share for value, share in pairs) / total if total > 0 else None


def mean_share(rows: Sequence[Row], key: str, signal: str = "tokens/signal") -> float | None:
    """The share that a rule removed of the gradient of all rows together, from the shares in each.

    key: e.g. `clip/gradient_removed/total`. Each row counts as much as its gradient was without the rule
    (`clip/gradient_unclipped`), which makes the mean the exact share; in older records as much as its tokens with a
    signal, whose number stands under `signal`.
    """
    whole = f"{key.partition('_removed/')[0]}_unclipped"
    exact = all(is_number(row, whole) for row in rows if is_number(row, key))
    return weighted_mean(rows, key, whole if exact else signal)


def share_of_signal(rows: Sequence[Row], key: str) -> float | None:
    """The mean of a fraction of all tokens, as a fraction of those with a signal; None where there are none."""
    counts = [
        (row[key] * row["tokens/loss"], row["tokens/signal"])
        for row in rows
        if is_finite(row, key) and is_finite(row, "tokens/loss") and is_finite(row, "tokens/signal")
    ]
    signal = sum(tokens for _, tokens in counts)
    return sum(part for part, _ in counts) / signal if signal > 0 else None


def last_tenth(series: Sequence[Item]) -> Sequence[Item]:
    """The last tenth of what was recorded, but no fewer than five where there are as many: how the run ended."""
    return series[-max(5, math.ceil(len(series) / 10)) :]


def first_tenth(series: Sequence[Item]) -> Sequence[Item]:
    """As `last_tenth`, of the beginning."""
    return series[: max(5, math.ceil(len(series) / 10))]
