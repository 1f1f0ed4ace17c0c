"""The settings of trials before anything is trained: valid, resolved, and the same as in the runs that are there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dinghai.config.load import CONFIG_FILE, settings_from_json
from dinghai.config.messages import one_line, value_text
from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError

_PLACE = ("run.name", "run.folder")  # where a run stands, which changes nothing in it
_TAKEN = (".log", ".json", ".tmp", ".md", ".csv", ".svg")  # endings of what else stands in the folder


def resolved_settings(name: str, tables: dict[str, Any], folder: Path) -> tuple[TrainSettings, list[str]]:
    """All settings of a trial in `folder`/`name`, as its run will keep them, and what to say of them before training.

    Raises InputError where they are not valid. The rule they name must be registered.
    """
    run = tables.get("run", {})
    for key in ("name", "folder"):
        if isinstance(run, dict) and run.get(key) is not None:
            raise InputError(f"trial {one_line(name)} sets run.{key}, which follows from the trial: leave it out")
    if name.startswith(".") or name.endswith(_TAKEN):
        raise InputError(f"{one_line(name)} cannot be the name of a trial: other files are named like that")
    placed = {**tables, "run": {**run, "name": name, "folder": str(folder)}} if isinstance(run, dict) else tables
    try:
        return resolved(settings_from_json(json.dumps(placed), f"trial {name}"))
    except InputError as error:
        prefix = f"trial {one_line(name)}: "
        raise InputError(prefix + str(error).removeprefix(prefix)) from error


def resolved(settings: TrainSettings) -> tuple[TrainSettings, list[str]]:
    """The settings with every parameter of the objective written out, and the objective's warnings."""
    from dinghai.configured import build_policy_loss, with_resolved_objective

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy_loss = build_policy_loss(settings)
    return with_resolved_objective(settings, policy_loss), [str(warning.message) for warning in caught]


def check_same(run_folder: Path, wanted: TrainSettings) -> None:
    """InputError where a run stands in the folder that has other settings, or something that is no run."""
    if not run_folder.exists():
        return
    path = run_folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{one_line(str(run_folder))} stands where a trial's run belongs, and is no run: move it")
    for key, there, here in differing(settings_from_json(path.read_text("utf-8"), str(path)), wanted):
        raise InputError(
            f"{one_line(str(run_folder))} was begun with {key} = {value_text(there)}, and the trial has "
            f"{value_text(here)}: choose another folder, or move that run"
        )


def differing(
    one: TrainSettings, other: TrainSettings, leave_out: Iterable[str] = ()
) -> list[tuple[str, object, object]]:
    """(dotted key, its value in the one, in the other) where they differ, but for where their runs stand."""
    first, second = by_key(one.model_dump(mode="json")), by_key(other.model_dump(mode="json"))
    keys = sorted((first.keys() | second.keys()) - {*_PLACE, *leave_out})
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def by_key(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= by_key(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def is_complete(run_folder: Path, steps: int) -> bool:
    """Whether a run has all its steps, its model and its report."""
    from dinghai.lens.metrics_file import load_metrics

    if not all((run_folder / name).exists() for name in ("model", "report.html", "metrics.jsonl")):
        return False
    rows = load_metrics(run_folder / "metrics.jsonl").rows
    return bool(rows) and rows[-1]["step"] == steps
