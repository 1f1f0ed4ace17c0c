"""A run as a few sums: what was learned, what the rule took away, where, and what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinghai.errors import InputError
from dinghai.files import read_json
from dinghai.lens.doctor.case import QUICK, THOROUGH, Case, Reading
from dinghai.lens.doctor.diagnose import examine
from dinghai.lens.doctor.finding import Finding
from dinghai.lens.doctor.trend import change_of_means
from dinghai.lens.metrics_file import Metrics, load_metrics
from dinghai.lens.regions import REGIONS
from dinghai.lens.series import Row, is_number, mean_share, share_of_signal, steps_and_values, weighted_mean
from dinghai.lens.settings import table
from dinghai.lens.words import counted
from dinghai.trace import TraceReader

REWARD_SIGMAS = 2.0  # standard errors of the difference of two means over steps: 1 in 20 by chance


@dataclass(frozen=True)
class UpdateSummary:
    """What the rule did in the updates with one index within their batches, over all steps."""

    index: int  # from 0
    stopped_fraction: float
    gradient_removed: float


@dataclass(frozen=True)
class Change:
    """From the mean over the first steps to that over as many last ones."""

    first: float
    last: float
    steps: int  # of each mean
    beyond_noise: bool


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run; None where its record does not say.

    Fractions are of tokens with a signal, over all steps, so a step with more such tokens counts for more; shares of
    the gradient are of what all steps together would have had.
    """

    run: Path
    steps: int  # training steps recorded
    steps_planned: int | None
    evaluations: list[tuple[int, float]]  # step, held-out accuracy (0 to 1); step 0 is before reinforcement learning
    held_out_problems: int | None
    held_out_first: float | None
    held_out_last: float | None
    held_out_last_step: int | None
    reward_first: float | None
    reward_last: float | None
    reward_change: Change | None  # None where the steps are too few to tell
    effects: dict[str, float]  # effect -> share of the tokens: stopped, attenuated, amplified, reversed
    stopped_fraction: float | None  # tokens whose gradient the rule made exactly zero
    band_fraction: float | None  # tokens with the ratio outside the band, stopped or not
    gradient_removed: float | None  # share of the gradient that the rule took away
    removed_by_region: dict[str, float]  # region -> its share of the gradient, largest first
    updates_per_batch: int | None
    updates: list[UpdateSummary]  # by their index within their batch
    of_sequences: bool  # whether the rule sees the ratio of a completion rather than of a token
    no_signal_groups: float | None  # share of the groups whose advantages were all 0
    rule: str | None
    parameters: dict[str, float]  # of the rule, by name; those that are off are left out
    findings: list[Finding]  # what looks wrong, the gravest first
    notes: list[str]  # what is missing or damaged

    @property
    def removed_most(self) -> str | None:
        """The region in which most of the gradient was removed; None where none was."""
        return next((name for name, share in self.removed_by_region.items() if share > 0), None)


def summarize(run_folder: Path) -> RunSummary:
    """Read a run's settings and metrics and add them up.

    Raises:
        InputError: the folder is not a run: it has neither settings nor metrics.
    """
    run_folder = Path(run_folder)
    config, config_notes = load_config(run_folder)
    metrics = load_run_metrics(run_folder)
    if config is None and not metrics.rows:
        raise InputError(f"{run_folder} is not a run: it holds neither config.json nor metrics.jsonl")
    return summarize_rows(run_folder, config or {}, metrics, [*config_notes, *metrics.notes])


def load_config(run_folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The settings of a run and what there is to say about them."""
    path = run_folder / "config.json"
    if not path.is_file():
        return None, ["config.json is missing, so the settings are not shown"]
    try:
        config = read_json(path)
    except (ValueError, OSError) as error:
        return None, [f"config.json is damaged ({str(error)[:80]}), so the settings are not shown"]
    if not isinstance(config, dict):
        return None, ["config.json is damaged (it is not an object), so the settings are not shown"]
    return config, []


def load_run_metrics(run_folder: Path) -> Metrics:
    """The metrics of a run; a run that died before its first step has none."""
    path = run_folder / "metrics.jsonl"
    if not path.is_file():
        return Metrics(notes=["metrics.jsonl is missing: the run ended before its first step"])
    return load_metrics(path)


def summarize_rows(
    run: Path,
    config: dict[str, Any],
    metrics: Metrics,
    notes: list[str],
    reading: Reading = THOROUGH,
    trace: TraceReader | None = None,
) -> RunSummary:
    """As `summarize`, from what was read.

    reading: how much of the trace the doctor's checks may read; of a run that still grows no more than QUICK.
    trace: a reader that knows the trace already.
    """
    training = metrics.training
    evaluations = steps_and_values(metrics.rows, "held_out/accuracy")
    rewards = [value for _, value in steps_and_values(training, "reward/mean")]
    removed, by_region = _removed(training)
    objective = table(config, "objective")
    steps_planned = _whole(table(config, "run").get("steps"))
    held_out_problems = _whole(table(config, "task").get("held_out"))
    case = Case(run, config, metrics, reading, trace)
    if case.state == "running":  # it must not be slowed down
        case = Case(run, config, metrics, QUICK, trace)
    diagnosis = examine(case)
    if case.too_large:
        unread = counted(case.too_large, "large step")
        notes = [*notes, f"the checks did not read the tokens of {unread}; `dinghai doctor {run}` reads more of them"]
    return RunSummary(
        run=run,
        steps=len(training),
        steps_planned=steps_planned,
        evaluations=evaluations,
        held_out_problems=held_out_problems,
        held_out_first=evaluations[0][1] if evaluations else None,
        held_out_last=evaluations[-1][1] if evaluations else None,
        held_out_last_step=evaluations[-1][0] if evaluations else None,
        reward_first=rewards[0] if rewards else None,
        reward_last=rewards[-1] if rewards else None,
        reward_change=_change(rewards),
        effects=_effects(training),
        stopped_fraction=weighted_mean(training, "clip/stopped_fraction"),
        band_fraction=weighted_mean(training, "clip/band_fraction"),
        gradient_removed=removed,
        removed_by_region=by_region,
        updates_per_batch=case.updates_per_batch,
        updates=_updates(training),
        of_sequences=case.of_sequences,
        no_signal_groups=weighted_mean(training, "groups/no_signal_fraction", weight=None),
        rule=objective.get("rule"),
        parameters=_parameters(objective),
        findings=diagnosis.findings,
        notes=[*notes, *diagnosis.notes],
    )


def _change(values: Sequence[float]) -> Change | None:
    """Of the mean of the first fifth to that of the last fifth."""
    change = change_of_means(values)
    if change is None:
        return None
    return Change(change.first, change.last, len(values) // 5, abs(change.sigmas) > REWARD_SIGMAS)


def _effects(rows: Sequence[Row]) -> dict[str, float]:
    """Effect -> share of the tokens with a signal; without `kept`, and without those that the record does not have."""
    stopped = weighted_mean(rows, "clip/stopped_fraction")
    found = {"stopped": stopped} | {
        effect: share_of_signal(rows, f"clip/effect/{effect}_fraction")
        for effect in ("attenuated", "amplified", "reversed")
    }
    return {effect: share for effect, share in found.items() if share is not None}


def _updates(rows: Sequence[Row]) -> list[UpdateSummary]:
    by_index: dict[int, list[Row]] = {}
    for row in rows:
        for entry in row.get("by_update") or []:
            by_index.setdefault(int(entry["update"]), []).append(entry)
    means = {
        index: [
            weighted_mean(entries, "stopped_fraction", weight="signal_tokens") or 0.0,
            mean_share(entries, "gradient_removed/total", signal="signal_tokens") or 0.0,
        ]
        for index, entries in sorted(by_index.items())
    }
    return [UpdateSummary(index, *values) for index, values in means.items()]


def _removed(rows: Sequence[Row]) -> tuple[float | None, dict[str, float]]:
    """The share of the gradient removed, in all and by region, largest first; of gradient weight in older records."""
    for family in ("clip/gradient_removed", "clip/weight_removed"):
        total = mean_share(rows, f"{family}/total")
        if total is None:
            continue
        shares = {region: mean_share(rows, f"{family}/{region}") or 0.0 for region in REGIONS}
        return total, dict(sorted(shares.items(), key=lambda item: -item[1]))
    return None, {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parameters(objective: dict[str, Any]) -> dict[str, float]:
    """The rule's parameters; records of older versions have the clip's beside the rule's name."""
    named = {name: objective.get(name) for name in ("eps_low", "eps_high", "dual_clip")}
    found = {str(name): value for name, value in {**named, **table(objective, "parameters")}.items()}
    return {name: value for name, value in found.items() if is_number(found, name)}
