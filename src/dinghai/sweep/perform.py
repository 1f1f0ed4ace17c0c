"""What a trial is, to whoever trains it: a process of the pool, or a Ray worker."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinghai.config.load import CONFIG_FILE, settings_from_json
from dinghai.errors import DinghaiError
from dinghai.text import safe

_LONGEST_ERROR = 600  # characters; the traceback stands in the log


@dataclass(frozen=True)
class Job:
    """One trial to train.

    settings: all of them, as JSON; run.folder and run.name say where
    """

    name: str
    folder: str
    settings: str


@dataclass(frozen=True)
class Report:
    """What became of a job: its error, none where it was done, and how long it took."""

    name: str
    error: str | None
    seconds: float


def perform(job: Job, allowed_rewards: Collection[str], rule_code: Collection[str]) -> Report:
    """Trains the run of a job, or resumes it where it was begun. Whatever it raises becomes the report's error.

    What it prints, and the traceback of an error, is added to FOLDER/NAME.log.
    """
    import torch

    begun = time.perf_counter()
    torch.set_num_threads(1)  # the run before may have set another number; model.threads sets its own
    error = None
    with _Logged(Path(job.folder) / f"{job.name}.log"):
        try:
            _train(job, allowed_rewards, rule_code)
        except BaseException as raised:  # a reward of the user's may even call sys.exit
            traceback.print_exc()
            error = _in_words(raised)
    return Report(job.name, error, time.perf_counter() - begun)


def _train(job: Job, allowed_rewards: Collection[str], rule_code: Collection[str]) -> None:
    from dinghai.train.run import resume, train

    run_folder = Path(job.folder) / job.name
    if (run_folder / CONFIG_FILE).is_file():
        resume(run_folder, allowed_rewards, None, rule_code)
    else:
        train(settings_from_json(job.settings, job.name), allowed_rewards, rule_code)


def load_rules(files: Sequence[str]) -> list[str]:
    """Registers the rules of the user's files, once in a process, and gives the SHA-256 of each file."""
    from dinghai.user_code import execute_file

    for file in files:
        path = Path(file).expanduser().resolve()
        if path not in _LOADED:
            _LOADED[path] = execute_file(path, "--rule-file")[1]
    return [_LOADED[Path(file).expanduser().resolve()] for file in files]


_LOADED: dict[Path, str] = {}


def _in_words(error: BaseException) -> str:
    """An error in one line, harmless to show: what a reward raises may quote a completion."""
    text = safe(" ".join(str(error).split()))
    if not isinstance(error, DinghaiError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:_LONGEST_ERROR]


class _Logged:
    """Within it, standard output and error of the process are added to a file, those of libraries in C as well."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._flush()
        self._before = os.dup(1), os.dup(2)
        with self._path.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)

    def __exit__(self, *raised: Any) -> None:
        self._flush()
        for target, descriptor in zip((1, 2), self._before, strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
