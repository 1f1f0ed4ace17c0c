"""The overview of a run as one JSON value: the report embeds it, the live page asks for it again as the run grows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dinghai.errors import DinghaiError, InputError
from dinghai.lens.costs import costs
from dinghai.lens.doctor.case import THOROUGH, Reading
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.regions import EFFECT_MEANING, REGION_MEANING
from dinghai.lens.rule_facts import load_rule_facts
from dinghai.lens.run_state import run_state
from dinghai.lens.summary import RunSummary, load_config, load_run_metrics, summarize_rows
from dinghai.lens.verdict import sentences
from dinghai.text import safe
from dinghai.trace import TraceReader
from dinghai.view.report_charts import curves, region_charts, update_charts, update_names
from dinghai.view.report_facts import fact_tiles
from dinghai.view.settings_table import settings_rows, trained_with, version_rows


def overview(
    run_folder: Path, metrics: Metrics | None = None, reading: Reading = THOROUGH, trace: TraceReader | None = None
) -> dict[str, Any]:
    """What is seen of a run without its trace: verdict, facts, curves, settings. Text in it has gone through `safe`.

    Args:
        run_folder: `runs/NAME`. What it lacks is said in `notes`.
        metrics: where the caller has read them already; else they are read from the run.
        reading: how much of the trace the doctor's checks may read.
        trace: a reader that knows the trace already.

    Raises:
        InputError: the folder is not a run: it has neither settings nor metrics; or its metrics are damaged.
    """
    run_folder = Path(run_folder)
    config, notes = load_config(run_folder)
    if metrics is None:
        metrics = load_run_metrics(run_folder)
    if config is None and not metrics.rows:
        raise InputError(f"{run_folder} is not a run: it holds neither config.json nor metrics.jsonl")
    config = config or {}
    rule, rule_notes = _rule(run_folder)
    notes += rule_notes
    summary = summarize_rows(run_folder, config, metrics, [*notes, *metrics.notes], reading, trace)
    return {
        "name": safe(run_folder.resolve().name),
        **_progress(run_folder, summary, metrics),
        "verdict": [safe(one) for one in sentences(summary)],
        "findings": [all_safe(one.as_json() | {"sentence": one.sentence}) for one in summary.findings],
        "notes": [safe(note) for note in summary.notes],
        "facts": fact_tiles(summary, config),
        "curves": curves(metrics),
        "regions_over_time": region_charts(metrics),
        "by_update": update_charts(metrics),
        "update_names": update_names(metrics),
        "regions": [{"name": name, "meaning": meaning} for name, meaning in REGION_MEANING.items()],
        "effects": [{"name": name, "meaning": meaning} for name, meaning in EFFECT_MEANING.items()],
        "rule": rule,
        "costs": [[safe(name), safe(value)] for name, value in costs(run_folder, metrics)],
        "settings": [[safe(name), safe(value)] for name, value in settings_rows(config)],
        "trained_with": [[safe(name), safe(value)] for name, value in trained_with(run_folder)],
        "versions": version_rows(),
    }


def _rule(run_folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """What is known of the rule's bounds, and what there is to say about it."""
    try:
        facts = load_rule_facts(run_folder)
    except DinghaiError as error:
        return None, [str(error)]
    if facts is not None:
        facts["zero"] = _without_what_is_off(facts["zero"], facts["parameters"])
    return all_safe(facts), []


def _without_what_is_off(conditions: str, parameters: dict[str, Any]) -> str:
    """Conditions, separated by semicolons, but for those that name a parameter which the run has switched off."""
    off = {name for name, value in parameters.items() if value is None}
    parts = conditions.split("; ")
    return "; ".join(part for part in parts if off.isdisjoint(re.findall(r"\w+", part)))


def all_safe(value: Any) -> Any:
    """The value with every string in it made safe to show, names of keys too."""
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, dict):
        return {safe(key): all_safe(item) for key, item in value.items()}
    return [all_safe(item) for item in value] if isinstance(value, list | tuple) else value


def _progress(run_folder: Path, summary: RunSummary, metrics: Metrics) -> dict[str, Any]:
    """How far the run is, and whether it still grows as far as one can tell from its files."""
    done = metrics.rows[-1]["step"] if metrics.rows else 0
    state = run_state(run_folder, metrics, summary.steps_planned)
    return {"state": state, "steps": done, "steps_planned": summary.steps_planned}
