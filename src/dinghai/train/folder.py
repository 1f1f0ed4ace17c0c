"""The run folder: configuration, versions, metrics."""

from __future__ import annotations

import errno
import itertools
import json
import os
import platform
import secrets
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dinghai import __version__, files
from dinghai.config.load import CONFIG_FILE, settings_to_json
from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError
from dinghai.files import json_line
from dinghai.lens.rule_facts import RULE_FILE
from dinghai.policy.model import choose_device

METRICS_FILE = "metrics.jsonl"
VERSIONS_FILE = "versions.json"


def choose_folder(settings: TrainSettings) -> Path:
    """The folder of a new run; InputError if it exists. By default the task's name and the first free number."""
    parent = Path(settings.run.folder)
    if settings.run.name is None:
        names = (f"{settings.task.kind}-{n}" for n in itertools.count(1))
        return next(parent / name for name in names if not (parent / name).exists())
    folder = parent / settings.run.name
    if folder.exists():
        raise InputError(
            f"{folder} exists: continue it with `dinghai resume {folder}`, or give the new run another run.name"
        )
    return folder


def create_folder(folder: Path, settings: TrainSettings, rule_facts: Mapping[str, Any]) -> None:
    """Makes the run folder with its configuration in it, in one step: whoever is killed leaves a run or nothing.

    rule_facts: what `probe` found out about the rule; this program has it, and one that reads the run later may not
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    try:
        aside.mkdir()
        files.write_durably(aside / VERSIONS_FILE, json.dumps(versions(settings), indent=1) + "\n")
        files.write_durably(aside / RULE_FILE, files.json_line(rule_facts))
        files.write_durably(aside / CONFIG_FILE, settings_to_json(settings))
        files.fsync_folder(aside)
        files.rename(aside, folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise InputError(f"{folder} exists: give the new run another run.name") from None
        raise
    files.fsync_folder(folder.parent)


def versions(settings: TrainSettings) -> dict[str, str]:
    """What the run was made with, for its report."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "pyarrow")}
    device = torch.cuda.get_device_name() if choose_device(settings.model.device).type == "cuda" else "CPU"
    return {
        "dinghai": __version__,
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
        "device": device,
    }


class MetricsFile:
    """metrics.jsonl, one line a step. A resumed run cuts it back to what its checkpoint had seen."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE

    def append(self, metrics: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json_line(metrics).encode())

    def size(self) -> int:
        """Bytes so far, flushed to disk, for a checkpoint to remember."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return self._path.stat().st_size

    def cut(self, size: int) -> None:
        """Forgets everything behind the first `size` bytes; a file that has lost lines stays as short as it is."""
        if self._path.exists():
            os.truncate(self._path, min(size, self._path.stat().st_size))
