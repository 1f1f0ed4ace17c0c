"""Trials: ordinary runs with given settings, trained several at a time, whatever happens to one of them.

What was done is read from the runs' own folders; FOLDER/sweep.json holds what was asked for and what went wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinghai import files
from dinghai.config.load import settings_to_json
from dinghai.config.messages import one_line
from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError, RunFailed
from dinghai.sweep.check import check_same, is_complete, resolved_settings
from dinghai.sweep.lock import alone_in
from dinghai.sweep.perform import Job, Report, load_rules

SWEEP_FILE = "sweep.json"
FORMAT = 1


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
    ended: Callable[[Outcome], None] = lambda outcome: None,
    on: Literal["processes", "ray"] = "processes",
) -> list[Outcome]:
    """Trains each trial in `folder`/NAME and gives their outcomes in the order of the trials.

    A trial whose run is complete is not trained again, one that was begun is resumed, and one that fails does not stop
    the others: it is tried again when the trials are run again.

    workers:         trials at a time, each in a process of one thread unless its model.threads says otherwise
    rule_files:      files of rules of one's own, which are executed
    allowed_rewards: FILE.py:FUNCTION sources that settings may name, and so allowed to be run
    tell:            is called with a line for each trial that ends
    ended:           is called with the outcome of each trial that ends; what it raises stops the others, resumable
    on:              processes of this machine, or Ray Tune

    Raises:
        InputError: settings that are not valid, or not those of the run that stands in a trial's folder; or another
            process is training there. Nothing has been trained then.
        RunFailed: no process could be started, or sweep.json cannot be written.
    """
    load_rules([str(file) for file in rule_files])
    settings = validated(trials, folder)
    by_name = {trial.name: trial for trial in trials}
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder) as lock:
        state = _State(folder, trials)
        jobs = [
            Job(name, str(folder), settings_to_json(one))
            for name, one in settings.items()
            if not is_complete(folder / name, one.run.steps)
        ]
        progress = _Progress(len(trials), len(jobs), workers, tell)

        def note(report: Report) -> None:
            state.note(report)
            progress.note(report)
            ended(_outcome(by_name[report.name], folder, report.error))

        _performer(on)(jobs, workers, allowed_rewards, [str(file) for file in rule_files], note, lock)
    return [_outcome(trial, folder, state.error(trial.name)) for trial in trials]


def validated(trials: Sequence[Trial], folder: Path) -> dict[str, TrainSettings]:
    """The settings of each trial by name, as its run will keep them. The rules they name must be registered.

    Raises:
        InputError: two trials of one name, settings that are not valid, or not those of the run in the folder.
    """
    found: dict[str, TrainSettings] = {}
    for trial in trials:
        if trial.name in found:
            raise InputError(f"two trials are named {one_line(trial.name)}: each needs a name of its own")
        found[trial.name], _ = resolved_settings(trial.name, trial.settings, folder)
        check_same(folder / trial.name, found[trial.name])
    return found


def _performer(on: str) -> Callable[..., None]:
    if on == "ray":
        from dinghai.sweep.ray_pool import perform_on_ray

        return perform_on_ray
    from dinghai.sweep.pool import perform_in_processes

    return perform_in_processes


def _outcome(trial: Trial, folder: Path, error: str | None) -> Outcome:
    return Outcome(trial, folder / trial.name, "done" if error is None else "failed", error)


class _State:
    """FOLDER/sweep.json: trials with their settings, and the error of each that has failed."""

    def __init__(self, folder: Path, trials: Sequence[Trial]) -> None:
        self._path = folder / SWEEP_FILE
        self._trials = self._others({trial.name for trial in trials})
        self._trials |= {trial.name: {"settings": trial.settings, "error": None} for trial in trials}
        self._write()

    def error(self, name: str) -> str | None:
        error: str | None = self._trials[name]["error"]
        return error

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
        left_text = f", about {_duration(mean * left / min(self._workers, left))} left" if left else ""
        self._tell(f"{self._ended}/{self._trials} {report.name}: {state}, {_duration(report.seconds)}{left_text}")


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5940 else f"{seconds / 3600:.1f} h"
