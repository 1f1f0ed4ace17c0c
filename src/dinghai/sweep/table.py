"""What came of a sweep: each setting over its seeds, with intervals, failed trials counted, and nothing picked.

The end of a run is the last value of the metric; the last tenth is its mean over the last tenth of the steps.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinghai.config.messages import did_you_mean, one_line
from dinghai.errors import InputError
from dinghai.lens.metrics_file import load_metrics
from dinghai.sweep.intervals import Interval, interval, paired
from dinghai.sweep.plan import Plan, counted
from dinghai.sweep.trials import Outcome
from dinghai.text import safe

Goal = Literal["max", "min"]


@dataclass(frozen=True)
class Measured:
    """A trial: the metric at the end, its mean over the last tenth of the steps and over all; none where it failed."""

    setting: int
    seed: int
    error: str | None
    end: float | None
    last_tenth: float | None
    whole: float | None


@dataclass(frozen=True)
class Row:
    """A setting over its seeds.

    end:         mean of the metric at the end, and its 95 % t-interval; None where no seed has a value
    difference:  setting - reference over the seeds that both have; None for the reference, and where there are none
    is_told_apart: whether its interval lies apart from that of the setting with the best mean
    """

    setting: int
    values: dict[int, float]  # seed -> the metric at the end
    failed: int
    without_value: int
    end: Interval | None
    last_tenth: float | None
    whole: float | None
    difference: Interval | None
    is_best: bool
    is_told_apart: bool


def measure(plan: Plan, outcomes: Sequence[Outcome], metric: str) -> list[Measured]:
    """The metric of each trial. Raises InputError where no finished run has it."""
    rows_of = [None if outcome.error is not None else _rows(outcome.folder) for outcome in outcomes]
    found = {key for rows in rows_of if rows for row in rows for key, value in row.items() if _is_number(value)}
    if found and metric not in found:
        raise InputError(_no_such_metric(metric, found))
    measured = []
    for planned, outcome, rows in zip(plan.trials, outcomes, rows_of, strict=True):
        figures = (None, None, None) if rows is None else _figures(rows, metric)
        measured.append(Measured(planned.setting, planned.seed, outcome.error, *figures))
    return measured


def check_metric(run_folder: Path, metric: str) -> None:
    """InputError if the run's rows do not hold the metric."""
    found = {key for row in _rows(run_folder) for key, value in row.items() if _is_number(value)}
    if metric not in found:
        raise InputError(_no_such_metric(metric, found))


def _no_such_metric(metric: str, found: set[str]) -> str:
    near = did_you_mean(metric, sorted(found - {"step"})) or "; metrics.jsonl of a run shows those that there are"
    return f"--metric {one_line(metric)}: no run has it{near}"


def _rows(run_folder: Path) -> list[dict[str, Any]]:
    return load_metrics(run_folder / "metrics.jsonl").rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figures(rows: list[dict[str, Any]], metric: str) -> tuple[float | None, float | None, float | None]:
    """(at the end, mean over the last tenth of the steps, mean over all steps); step 0 is not a training step."""
    points = [(row["step"], float(row[metric])) for row in rows if row["step"] > 0 and _is_number(row.get(metric))]
    if not points:
        return None, None, None
    late = [value for step, value in points if step > 0.9 * rows[-1]["step"]] or [points[-1][1]]
    return points[-1][1], _mean(late), _mean([value for _, value in points])


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def tabulate(plan: Plan, measured: Sequence[Measured], goal: Goal) -> list[Row]:
    """A row for each setting, the best mean first; settings without any value stand last."""
    by_setting = [[m for m in measured if m.setting == number] for number in range(len(plan.settings))]
    values = [_finite({m.seed: m.end for m in trials}) for trials in by_setting]
    ends = [interval(list(v.values())) if v else None for v in values]
    sign = -1 if goal == "max" else 1
    order = sorted(range(len(ends)), key=lambda n: _key(ends[n], sign))
    best = order[0] if order and ends[order[0]] is not None else None
    rows = []
    for number in order:
        trials, common = by_setting[number], values[number].keys() & values[plan.reference].keys()
        difference = paired(values[number], values[plan.reference]) if common and number != plan.reference else None
        is_best = best is not None and _key(ends[number], sign) == _key(ends[best], sign)
        rows.append(
            Row(
                setting=number,
                values=values[number],
                failed=sum(m.error is not None for m in trials),
                without_value=sum(m.error is None for m in trials) - len(values[number]),
                end=ends[number],
                last_tenth=_mean(list(_finite({m.seed: m.last_tenth for m in trials}).values())),
                whole=_mean(list(_finite({m.seed: m.whole for m in trials}).values())),
                difference=difference,
                is_best=is_best,
                is_told_apart=best is not None and not is_best and _apart(ends[number], ends[best]),
            )
        )
    return rows


def _finite(values: dict[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def _key(end: Interval | None, sign: int) -> tuple[bool, float]:
    return (True, 0.0) if end is None else (False, sign * end.mean)


def _apart(one: Interval | None, other: Interval | None) -> bool:
    """Whether two intervals have no point in common. One that is not known is apart from nothing."""
    return one is not None and other is not None and (one.high < other.low or other.high < one.low)


# --- as text ---------------------------------------------------------------------------------------------------------


def columns(plan: Plan, rows: Sequence[Row], form: Form) -> dict[str, list[str]]:
    """The table by column, as text; the first columns are the varied settings."""
    numbers = [list(row.values.values()) for row in rows]
    found: dict[str, list[str]] = {
        short: [safe(plan.settings[row.setting][key]) for row in rows] for key, short in plan.short_keys().items()
    }
    found["n"] = [str(len(one)) for one in numbers]
    found["failed"] = [str(row.failed) for row in rows]
    if any(row.without_value for row in rows):
        found["no value"] = [str(row.without_value) for row in rows]
    found["mean ± 95 %"] = [form.interval(row.end) for row in rows]
    found["min"] = [form.number(min(one, default=None)) for one in numbers]
    found["max"] = [form.number(max(one, default=None)) for one in numbers]
    found["vs reference"] = [
        "reference" if row.setting == plan.reference else form.interval(row.difference, signed=True) for row in rows
    ]
    found[""] = [remark(row) for row in rows]
    return found


def more_columns(rows: Sequence[Row], form: Form) -> dict[str, list[str]]:
    """Those for the page, which has room."""
    return {
        "mean of the last tenth": [form.number(row.last_tenth) for row in rows],
        "mean of all steps": [form.number(row.whole) for row in rows],
    }


def remark(row: Row) -> str:
    """What the interval says of the row beside the best."""
    if row.end is None:
        return "no value"
    if row.is_best:
        return "best mean"
    return "" if row.is_told_apart else "not told apart"


class Form:
    """How the numbers of one metric are written: two digits of the usual half-width."""

    def __init__(self, rows: Sequence[Row]) -> None:
        halves = sorted(row.end.high - row.end.mean for row in rows if row.end and row.end.high > row.end.mean)
        values = [abs(value) for row in rows for value in row.values.values()]
        scale = halves[len(halves) // 2] if halves else max(values, default=0.0)
        self._decimals = max(0, min(12, 1 - math.floor(math.log10(scale or 1.0))))

    def number(self, value: float | None, signed: bool = False) -> str:
        if value is None:
            return "–"
        return f"{value:{'+' if signed else ''}.{self._decimals}f}"

    def interval(self, value: Interval | None, signed: bool = False) -> str:
        """`0.961 ± 0.014`; without the second part for a single value."""
        if value is None:
            return "–"
        half = "" if value.n < 2 else f" ± {self.number(value.high - value.mean)}"
        return self.number(value.mean, signed) + half


def notes(plan: Plan, rows: Sequence[Row], goal: Goal) -> list[str]:
    """How to read the table, in sentences."""
    compared = sum(row.end is not None for row in rows)
    reference = plan.label(plan.reference) or "the base"
    which = "the settings without --vary" if plan.reference_is_base else "the first in the order given"
    lines = [
        f"Sorted by the mean, {'highest' if goal == 'max' else 'lowest'} first. ± is the half-width of a 95 % "
        "t-interval over the seeds: where the mean of many seeds lies, not where single runs do. Not told apart: its "
        "interval overlaps that of the best mean.",
        f"Differences are paired: setting minus reference ({safe(reference)}: {which}) seed by seed, over the seeds "
        "that both have. That is the stronger comparison, since much of the spread is the seed's.",
    ]
    if compared > 2:
        lines.append(
            f"{compared} settings were compared: the mean of whichever came first is too good by that choice alone, "
            "and about one in twenty intervals misses. Repeat what matters with other seeds (--run.seed)."
        )
    if any(row.end is not None and row.end.n < 2 for row in rows):
        lines.append("A setting with a single value has no interval: the spread over seeds is not known.")
    failed, missing = sum(row.failed for row in rows), sum(row.without_value for row in rows)
    if failed:
        lines.append(
            f"{failed} of {len(plan.trials)} trials failed and are in no mean: where failing is the setting's doing, "
            "its mean is of the runs that survived it."
        )
    if missing:
        lines.append(f"{missing} runs ended without a finite value of the metric and are in no mean.")
    return lines


def as_markdown(plan: Plan, rows: Sequence[Row], outcomes: Sequence[Outcome], metric: str, goal: Goal) -> str:
    """The page of a sweep."""
    form = Form(rows)
    found = columns(plan, rows, form) | more_columns(rows, form)
    table = [list(found), ["---"] * len(found), *(list(line) for line in zip(*found.values(), strict=True))]
    lines = [
        f"# {safe(metric)} over {counted(len(plan.settings), 'setting')}, {counted(len(plan.seeds), 'seed')} each",
        "",
    ]
    lines += ["| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in table]
    lines += ["", *(f"- {_escaped(note)}" for note in notes(plan, rows, goal))]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        lines += ["", "Failed trials:", ""]
        lines += [f"- {_escaped(o.trial.name)}: {_escaped(safe(o.error or ''))}" for o in failed]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Text that markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text)


def as_csv(plan: Plan, measured: Sequence[Measured]) -> str:
    """A line for each trial."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["trial", *(axis.key for axis in plan.axes), "seed", "state", "end", "last_tenth", "all_steps", "error"]
    )
    for planned, one in zip(plan.trials, measured, strict=True):
        values = [plan.settings[planned.setting][axis.key] for axis in plan.axes]
        state = "done" if one.error is None else "failed"
        figures = ["" if x is None else repr(x) for x in (one.end, one.last_tenth, one.whole)]
        writer.writerow([planned.name, *values, planned.seed, state, *figures, safe(one.error or "")])
    return stream.getvalue()
