"""Reads `metrics.jsonl`: one JSON object a step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinghai.errors import InputError
from dinghai.files import parse_json

_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class TornLine(UserWarning):
    """The last line of a metrics file was not written to its end."""


@dataclass(frozen=True)
class Metrics:
    """The rows of a metrics file, in the file's order, and what a reader of them should know."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def training(self) -> list[dict[str, Any]]:
        """The rows of training steps; step 0 is the state before reinforcement learning."""
        return [row for row in self.rows if row["step"] > 0]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file. A torn last line, as a killed run leaves it, draws the warning `TornLine`.

    Raises:
        InputError: the file is not there, or one of its lines is not a JSON object with a step.
    """
    metrics = load_metrics(path)
    for note in metrics.notes:
        warnings.warn(note, TornLine, stacklevel=2)
    return metrics.rows


def load_metrics(path: Path) -> Metrics:
    """As `read_metrics`, with the warning as a note."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Is it the metrics file of a run?") from error
    torn = lines.pop()  # what follows the last line feed: nothing, unless the run died while writing
    rows = [parse_line(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    notes = []
    if torn.strip():
        try:
            rows.append(parse_line(torn, path, len(lines) + 1))
        except InputError:
            notes.append(f"the last line of {path.name} was not written to its end and is left out")
    return Metrics(rows, notes)


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One row of a metrics file; `path` and `number` are for the message.

    Raises:
        InputError: the line is not a JSON object with a step.
    """
    try:
        row = parse_json(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON: {str(error)[:100]}") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise InputError(
            f"{path}, line {number} is not a step's metrics: an object with a whole number `step` is needed"
        )
    return {key: _restore(value) for key, value in row.items()}


def _restore(value: Any) -> Any:
    """Non-finite numbers are stored as strings, since JSON has no others."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, list):
        return [_restore(item) for item in value]
    if isinstance(value, dict):
        return {key: _restore(item) for key, item in value.items()}
    return value
