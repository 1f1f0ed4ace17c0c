"""What several studies read off a run: from its metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinghai.lens.metrics_file import load_metrics

ACCURACY = "held_out/accuracy"


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The lines of its metrics, step 0 first."""
    return load_metrics(run / "metrics.jsonl").rows


def evaluations(rows: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """The steps at which the held-out accuracy was measured, and the accuracies."""
    measured = [row for row in rows if ACCURACY in row]
    return [row["step"] for row in measured], [row[ACCURACY] for row in measured]


def accuracy_measures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Held-out accuracy: the series, at the start, at the end, and the worst fall below the best value before."""
    steps, accuracy = evaluations(rows)
    best, worst_fall = accuracy[0], 0.0
    for value in accuracy:
        best = max(best, value)
        worst_fall = max(worst_fall, best - value)
    return {
        "evaluation_steps": steps,
        "accuracy": accuracy,
        "accuracy_start": accuracy[0],
        "accuracy_end": accuracy[-1],
        "worst_fall": worst_fall,
    }


def series(rows: list[dict[str, Any]], key: str) -> list[float | None]:
    """A metric at steps 1, 2, ...; None at steps without it, as those without any signal."""
    return [row.get(key) for row in rows if row["step"] > 0]


def by_update(rows: list[dict[str, Any]], key: str) -> Iterator[float]:
    """A metric at every update of the run that has it."""
    for row in rows:
        for update in row.get("by_update", ()):
            if key in update:
                yield update[key]


def largest(rows: list[dict[str, Any]], key: str) -> float | None:
    """The largest value of a metric over all updates; None where there is none."""
    return max((v for v in by_update(rows, key) if math.isfinite(v)), default=None)


def mean_over_signal(rows: list[dict[str, Any]], key: str) -> float | None:
    """The mean of a fraction of the tokens with a signal over the whole run, each step by its tokens."""
    pairs = [(row[key], row["tokens/signal"]) for row in rows if key in row and row.get("tokens/signal")]
    tokens = sum(signal for _, signal in pairs)
    return sum(value * signal for value, signal in pairs) / tokens if tokens else None


def mean_share_of_gradient(rows: list[dict[str, Any]], key: str) -> float | None:
    """The share of the run's unclipped gradient, e.g. of clip/gradient_removed/total."""
    pairs = [(row[key], row["clip/gradient_unclipped"]) for row in rows if key in row]
    whole = sum(gradient for _, gradient in pairs)
    return sum(share * gradient for share, gradient in pairs) / whole if whole else None
