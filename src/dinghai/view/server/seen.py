"""How far a run is, as its files tell, and whether they changed since one last looked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from dinghai.files import parse_json, read_json
from dinghai.lens.failure import FAILURE_FILE
from dinghai.lens.metrics_tail import LONGEST_LINE
from dinghai.lens.run_state import QUIET_SECONDS
from dinghai.trace.schema import MARKER, step_folder, step_number

METRICS, CONFIG = "metrics.jsonl", "config.json"
_TAIL_BYTES = 128 * 1024  # of the metrics, for the lines of the last steps
_LAST_STEPS = 10

Stamp = tuple[Any, ...]  # of files: another one where they changed


class Seen:
    """What a look at a run's files showed."""

    def __init__(self) -> None:
        self.files: Stamp = ()
        self.trace: Stamp = ()
        self.state = "stopped"
        self.steps = 0
        self.planned: int | None = None
        self.begun = 0.0  # seconds since 1970, as is `written`
        self.written = 0.0  # the last sign of life
        self.note: str | None = None
        self._took = 0.0  # seconds, the slowest of the last steps
        self._newest_steps: tuple[Stamp, list[Path]] = ((), [])

    @classmethod
    def of(cls, folder: Path, before: Seen | None) -> Seen:
        """Read again only what changed since `before`."""
        seen = cls()
        config, metrics = stamp_of(folder / CONFIG), stamp_of(folder / METRICS)
        seen.files = (config, metrics, stamp_of(folder / "rule.json"), stamp_of(folder / FAILURE_FILE))
        seen._look_at_trace(folder / "trace", before)
        if before is not None and before.files == seen.files:
            seen.steps, seen.planned, seen._took = before.steps, before.planned, before._took
        else:
            seen.planned = _planned(folder)
            seen.steps, seen._took = _progress(folder)
        times = [modified(one) for one in (config, metrics, *seen.trace)]
        seen.begun = modified(config) or modified(metrics)
        seen.written = max(times)
        seen._judge(folder)
        return seen

    @property
    def shown(self) -> Stamp:
        return (self.files, self.trace, self.state, self.note)

    def _look_at_trace(self, folder: Path, before: Seen | None) -> None:
        """The stamps of the two newest steps' markers; the second newest may still lack its own."""
        stamp = stamp_of(folder)
        if before is not None and before._newest_steps[0] == stamp:
            self._newest_steps = before._newest_steps
        else:
            self._newest_steps = (stamp, _newest_steps(folder))
        self.trace = (stamp, *(stamp_of(step / MARKER) for step in self._newest_steps[1]))

    def _judge(self, folder: Path) -> None:
        """Stopped is what says so, finished what made all its steps; of others one knows only when they last wrote."""
        if not folder.is_dir():
            self.state, self.note = "stopped", "its folder is gone"
        elif (folder / FAILURE_FILE).is_file():
            self.state = "stopped"
        elif self.planned is not None and self.steps >= self.planned:
            self.state = "finished"
        elif self.written and time.time() - self.written < max(QUIET_SECONDS, 10 * self._took):
            self.state = "running"


def leads_out_of(folder: Path, path: Path) -> bool:
    """Whether a link, the path itself or one on the way to it, leads out of `folder`, which is resolved."""
    on_the_way = [path, *(one for one in path.parents if one.is_relative_to(folder) and one != folder)]
    if not any(map(os.path.islink, on_the_way)):  # much cheaper than to resolve, and nearly always so
        return False
    return not Path(os.path.realpath(path)).is_relative_to(folder)


def stamp_of(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def modified(stamp: Stamp) -> float:
    """Seconds since 1970; 0 where there is no file."""
    return float(stamp[0]) / 1e9


def _newest_steps(trace: Path) -> list[Path]:
    try:
        numbers = sorted(number for entry in os.scandir(trace) if (number := step_number(Path(entry.name))) is not None)
    except OSError:
        return []
    return [step_folder(trace, number) for number in numbers[-2:]]


def _planned(folder: Path) -> int | None:
    """The number of steps that the run was to make; None where its settings do not say."""
    if leads_out_of(folder, folder / CONFIG):
        return None
    try:
        planned = read_json(folder / CONFIG)["run"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the overview says what is wrong with the settings
    return planned if isinstance(planned, int) else None


def _progress(folder: Path) -> tuple[int, float]:
    """The last step, and the seconds that the slowest of the last ones took, from the end of the metrics alone."""
    path = folder / METRICS
    if leads_out_of(folder, path) or not path.is_file():  # to open a pipe would be to wait for its writer
        return 0, 0.0
    try:
        with path.open("rb") as file:
            rows = _last_rows(file)
    except OSError:
        return 0, 0.0
    took = [row.get("seconds/step") for row in rows]
    return (rows[-1]["step"] if rows else 0), max((s for s in took if isinstance(s, int | float)), default=0.0)


def _last_rows(file: BinaryIO) -> list[dict[str, Any]]:
    """Some of the last rows of a metrics file, of however many updates they tell."""
    size = file.seek(0, os.SEEK_END)
    length = _TAIL_BYTES
    while True:
        file.seek(max(0, size - length))
        lines = file.read(length).split(b"\n")[:-1]  # what follows the last line feed is being written
        rows = [row for row in map(_row, lines[-_LAST_STEPS:]) if row is not None]
        if rows or length >= min(size, LONGEST_LINE):
            return rows
        length *= 8


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None  # cut by the place where the reading began, or damaged, which the overview says
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
