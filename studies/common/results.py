"""What the runs of a study came to: measures by arm and seed, as results/NAME.json holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.statistics import Interval, interval, paired
from dinghai.files import read_json

Measures = dict[str, Any]  # of a run: numbers, or lists of numbers (a series); None where there is none


@dataclass(frozen=True)
class Run:
    """One arm with one seed. `error` says why it failed; `measures` then hold what it left."""

    arm: str
    seed: int
    error: str | None
    measures: Measures


@dataclass(frozen=True)
class Results:
    """All runs of a study.

    arms:     key -> label, in the order of the study
    changes:  key -> what the arm's settings change of the base, by dotted key
    settings: what all arms share, by dotted key
    made:     when, where and with what the runs were made
    """

    study: str
    arms: Mapping[str, str]
    changes: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    made: Mapping[str, Any]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def failed(self, arm: str) -> int:
        """How many runs of the arm failed."""
        return sum(run.error is not None for run in self.runs if run.arm == arm)

    def numbers(self, arm: str, measure: str) -> dict[int, float]:
        """{seed: value} of the arm's runs that have the measure as a finite number."""
        found = {run.seed: run.measures.get(measure) for run in self.runs if run.arm == arm}
        return {seed: float(v) for seed, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}

    def series(self, arm: str, measure: str) -> dict[int, list[float]]:
        """{seed: values} of the arm's runs that have the measure as a list; NaN where it has no value."""
        found = {run.seed: run.measures.get(measure) for run in self.runs if run.arm == arm}
        return {
            seed: [math.nan if value is None else float(value) for value in values]
            for seed, values in found.items()
            if isinstance(values, list)
        }

    def interval(self, arm: str, measure: str) -> Interval | None:
        """Over the arm's seeds; None where no run has the measure."""
        values = list(self.numbers(arm, measure).values())
        return interval(values) if values else None

    def difference(self, one: str, other: str, measure: str) -> Interval | None:
        """Of one arm less another, paired over the seeds that both have; None where there are none."""
        a, b = self.numbers(one, measure), self.numbers(other, measure)
        return paired(a, b) if a.keys() & b.keys() else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_results(path: Path) -> Results:
    """From results/NAME.json."""
    found = read_json(path, largest=50_000_000)
    return Results(**{**found, "runs": tuple(Run(**run) for run in found["runs"])})
