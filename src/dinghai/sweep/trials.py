"""Trials: ordinary runs with given settings, trained several at a time, whatever happens to one of them.

What was done is read from the runs' own folders; FOLDER/sweep.json holds what was asked for and what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinghai import files
from dinghai.config.load import CONFIG_FILE, settings_from_json, settings_to_json
from dinghai.config.messages import one_line, value_text
from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError, RunFailed
from dinghai.sweep.perform import Job, Report, load_rules

SWEEP_FILE = "sweep.json"
FORMAT = 1

_LOCK_SECONDS = 10.0  # processes whose parent was killed are gone sooner than that


@dataclass(frozen=True)
class Trial:
    """A run to be: settings in nested tables, as a TOML file has them. Its folder is named by `name`."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial. `error` says why it failed; its log is FOLDER/NAME.log."""

    trial: Trial
    folder: Path
    state: Literal["done", "failed"]
    error: str | None


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    workers: int = 2,
    rule_files: Sequence[Path] = (),
    tell: Callable[[str], None] = print,
    *,
    allowed_rewards: Collection[str] = (),
) -> list[Outcome]:
    """Trains each trial in `folder`/NAME and gives their outcomes in the order of the trials.

    A trial whose run is complete is not trained again, one that was begun is resumed, and one that fails does not stop
    the others: it is tried again when the trials are run again.

    workers:         processes, of one thread each unless model.threads says otherwise
    rule_files:      files of rules of one's own, which are executed
    allowed_rewards: FILE.py:FUNCTION sources that settings may name, and so allowed to be run
    tell:            is called with a line for each trial that ends

    Raises:
        InputError: settings that are not valid, or not those of the run that stands in a trial's folder; or another
            process is training there. Nothing has been trained then.
        RunFailed: no process could be started.
    """
    load_rules([str(file) for file in rule_files])
    resolved = validated(trials, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder) as lock:
        todo = [trial.name for trial in trials if not _is_complete(folder / trial.name, resolved[trial.name])]
        state = _State(folder, trials)
        jobs = [Job(name, str(folder), settings_to_json(resolved[name])) for name in todo]
        progress = _Progress(len(trials), len(jobs), workers, tell)
        from dinghai.sweep.pool import perform_in_processes

        rules = [str(file) for file in rule_files]
        reports = perform_in_processes(jobs, workers, allowed_rewards, rules, lock)
        with contextlib.closing(reports):  # type: ignore[type-var]
            for report in reports:
                state.note(report)
                progress.note(report)
    return [_outcome(trial, folder, state.errors.get(trial.name)) for trial in trials]


def _outcome(trial: Trial, folder: Path, error: str | None) -> Outcome:
    return Outcome(trial, folder / trial.name, "done" if error is None else "failed", error)


# --- settings --------------------------------------------------------------------------------------------------------


def validated(trials: Sequence[Trial], folder: Path) -> dict[str, TrainSettings]:
    """The settings of each trial by name, the objective resolved. The rules they name must be registered.

    Raises:
        InputError: two trials of one name, settings that are not valid, or not those of the run in the folder.
    """
    resolved: dict[str, TrainSettings] = {}
    for trial in trials:
        if trial.name in resolved:
            raise InputError(f"two trials are named {one_line(trial.name)}: each needs a name of its own")
        resolved[trial.name] = _resolved(trial, folder)
        _check_same(folder / trial.name, resolved[trial.name])
    return resolved


def _resolved(trial: Trial, folder: Path) -> TrainSettings:
    from dinghai.configured import build_policy_loss, with_resolved_objective

    run = trial.settings.get("run", {})
    for key in ("name", "folder"):
        if key in run:
            raise InputError(
                f"trial {one_line(trial.name)} sets run.{key}, which is the sweep's to choose: leave it out"
            )
    if trial.name.startswith(".") or trial.name.endswith((".log", ".json", ".tmp")):
        raise InputError(f"{one_line(trial.name)} cannot be the name of a trial: such names are taken by other files")
    placed = trial.settings | {"run": {**run, "name": trial.name, "folder": str(folder)}}
    settings = settings_from_json(json.dumps(placed), f"trial {trial.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each run says them itself
            return with_resolved_objective(settings, build_policy_loss(settings))
    except InputError as error:
        raise InputError(f"trial {one_line(trial.name)}: {error}") from error


def _check_same(run_folder: Path, wanted: TrainSettings) -> None:
    """InputError where a run stands in the folder that has other settings; where it stands does not count."""
    if not run_folder.exists():
        return
    path = run_folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{one_line(str(run_folder))} stands in the way of a trial, and is no run: move it")
    there = _by_key(settings_from_json(path.read_text("utf-8"), str(path)).model_dump(mode="json"))
    here = _by_key(wanted.model_dump(mode="json"))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key) and key not in ("run.name", "run.folder"):
            raise InputError(
                f"{one_line(str(run_folder))} was begun with {key} {value_text(there.get(key))}, and the trial has "
                f"{value_text(here.get(key))}: choose another folder, or move that run"
            )


def _by_key(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, dict):
            flat |= _by_key(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_complete(run_folder: Path, settings: TrainSettings) -> bool:
    """Whether a run has all its steps, its model and its report."""
    from dinghai.lens.metrics_file import load_metrics

    if not all((run_folder / name).exists() for name in ("model", "report.html", "metrics.jsonl")):
        return False
    rows = load_metrics(run_folder / "metrics.jsonl").rows
    return bool(rows) and rows[-1]["step"] == settings.run.steps


# --- what is written and told ----------------------------------------------------------------------------------------


class _State:
    """FOLDER/sweep.json: trials with their settings, and the error of each that has failed."""

    def __init__(self, folder: Path, trials: Sequence[Trial]) -> None:
        self._path = folder / SWEEP_FILE
        self._trials = self._others({trial.name for trial in trials})
        self._trials |= {trial.name: {"settings": trial.settings, "error": None} for trial in trials}
        self._write()

    @property
    def errors(self) -> dict[str, str]:
        return {name: entry["error"] for name, entry in self._trials.items() if entry["error"] is not None}

    def note(self, report: Report) -> None:
        self._trials[report.name]["error"] = report.error
        if report.error is not None:
            self._write()

    def _others(self, names: set[str]) -> dict[str, Any]:
        """Trials that were run in the folder before and are not among these."""
        try:
            found = files.read_json(self._path)["trials"]
            return {name: entry for name, entry in found.items() if name not in names}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise InputError(f"{one_line(str(self._path))} is damaged ({error}): remove it, and run again") from error

    def _write(self) -> None:
        content = {"format": FORMAT, "trials": self._trials}
        try:
            files.write_atomically(self._path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunFailed(f"{self._path} cannot be written: {error.strerror}; mend that, and run again") from error


class _Progress:
    """Tells of each trial that ends, and about how long the others will take."""

    def __init__(self, trials: int, todo: int, workers: int, tell: Callable[[str], None]) -> None:
        self._trials, self._ended, self._workers, self._tell = trials, trials - todo, workers, tell
        self._seconds: list[float] = []
        if self._ended:
            tell(f"{self._ended} of {trials} trials are done already")

    def note(self, report: Report) -> None:
        self._ended += 1
        self._seconds.append(report.seconds)
        left = self._trials - self._ended
        mean = sum(self._seconds) / len(self._seconds)
        state = "done" if report.error is None else f"FAILED ({report.error})"
        left_text = f", about {_duration(mean * left / self._workers)} left" if left else ""
        self._tell(f"{self._ended}/{self._trials} {report.name}: {state}, {_duration(report.seconds)}{left_text}")


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5940 else f"{seconds / 3600:.1f} h"


# --- one at a time ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[tuple[int, ...]]:
    """A lock on the folder, held by this process and all that are given its descriptor, until the last of them ends.

    So processes that outlive a killed parent for a moment cannot meet their successors in one run. Without fcntl
    (Windows) there is none.
    """
    try:
        import fcntl
    except ImportError:
        yield ()
        return
    with (folder / ".lock").open("ab") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    where = one_line(str(folder))
                    raise InputError(f"another process trains trials in {where}: wait for it to end") from None
                time.sleep(0.1)
        yield (file.fileno(),)
