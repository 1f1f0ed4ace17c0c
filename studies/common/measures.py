"""What several studies read off a run: from its metrics.jsonl and its trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.lens.metrics_file import load_metrics
from dinghai.lens.series import mean_share, share_of_signal, weighted_mean
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader

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
    """A fraction over the whole run, of the tokens with a signal; in the rows clip/region/* are of all tokens."""
    return share_of_signal(rows, key) if "/region/" in key else weighted_mean(rows, key)


def mean_share_of_gradient(rows: list[dict[str, Any]], key: str) -> float | None:
    """The share of the whole run's unclipped gradient, e.g. of clip/gradient_removed/total."""
    return mean_share(rows, key)


# --- from the trace --------------------------------------------------------------------------------------------------


def entropy_by_step(run: Path) -> list[float]:
    """The mean entropy at steps 1, 2, ... of the policy that sampled, in nats, over the tokens of each first update.

    The minibatch of the first update is a random part of the batch. Set update.shortcuts.skip_no_signal to false: else
    samples without signal, the surest ones, have no entropy.
    """
    reader = TraceReader(run / "trace")
    means = []
    for step in reader.steps():
        tokens = read_tokens(reader, step, 0, ["entropy", "scored"])
        means.append(float(np.mean(tokens.entropy[tokens.scored], dtype=np.float64)))
    return means


def groups_by_step(run: Path) -> list[dict[str, float]]:
    """Of each step, over its groups: the mean number of distinct completions, and the share with a right one.

    A completion is right where the task's own reward is above 0.
    """
    reader = TraceReader(run / "trace")
    found = []
    for step in reader.steps():
        table = reader.samples(step, ["group", "completion", "reward/task"])
        texts: dict[int, set[str]] = {}
        right: dict[int, bool] = {}
        columns = (table[name].to_pylist() for name in ("group", "completion", "reward/task"))
        for group, text, reward in zip(*columns, strict=True):
            texts.setdefault(group, set()).add(text)
            right[group] = right.get(group, False) or reward > 0
        distinct = sum(map(len, texts.values())) / len(texts)
        found.append({"distinct": distinct, "any_right": sum(right.values()) / len(right)})
    return found


def last_mean(values: Sequence[float], steps: int = 5) -> float:
    """The mean over the last steps."""
    tail = values[-steps:]
    return math.fsum(tail) / len(tail)
