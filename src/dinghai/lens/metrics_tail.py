"""Reads `metrics.jsonl` of a run that still trains: each look parses only the lines that came since the last one.

A line has some 400 numbers, and as Python objects they take thirty kilobytes, so a long run is kept packed: the numbers
of a line in an array, its names once for all lines that have the same.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from dinghai.errors import InputError
from dinghai.lens.metrics_file import Metrics, parse_line

SETTLED_SECONDS = 5.0  # a last line that has not grown for so long was cut off, and is not being written just now
LONGEST_LINE = 64 * 1024 * 1024  # bytes; no step's metrics are, and a file without lines must not fill the memory
_CHUNK = 4 * 1024 * 1024
_REMEMBERED = 4096  # bytes before the place reached: where they differ, the file was cut back and written anew
_LARGEST_EXACT = 2**53  # a whole number up to this fits a float without loss


class PackedRow(Mapping[str, Any]):
    """A line of the metrics, read as the dict that it was."""

    __slots__ = ("_numbers", "_others", "_shape")

    def __init__(self, shape: _Shape, numbers: array[float], others: dict[str, Any] | None) -> None:
        self._shape, self._numbers, self._others = shape, numbers, others

    def __getitem__(self, key: str) -> Any:
        if key not in self._shape.all_names:
            raise KeyError(key)
        return self.get(key)

    def get(self, key: str, default: Any = None) -> Any:  # called millions of times for a long run, so without detours
        shape = self._shape
        place = shape.places.get(key)
        if place is not None:
            kind = shape.kinds[place]
            return self._numbers[place] if kind is None else kind(self._numbers[place])
        return default if self._others is None else self._others.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._shape.all_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._shape.all_names)

    def __len__(self) -> int:
        return len(self._shape.all_names)


class _Shape:
    """The names and kinds of the numbers of a row; rows that have the same share one."""

    def __init__(self, all_names: tuple[str, ...], numbers: tuple[str, ...], kinds: tuple[type, ...]) -> None:
        self.all_names = dict.fromkeys(all_names)  # in the order of the line
        self.places = {name: place for place, name in enumerate(numbers)}
        self.kinds = [None if kind is float else kind for kind in kinds]  # what makes the value of the float


class Packer:
    """Packs rows, and keeps the shapes that they share."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[tuple[str, ...], tuple[str, ...], tuple[type, ...]], _Shape] = {}

    def pack(self, row: Mapping[str, Any]) -> PackedRow:
        numbers, kinds, others = [], [], {}
        for name, value in row.items():
            if type(value) in (float, bool) or (type(value) is int and abs(value) <= _LARGEST_EXACT):
                numbers.append(name)
                kinds.append(type(value))
            else:
                others[name] = self._packed(value)
        key = (tuple(row), tuple(numbers), tuple(kinds))
        shape = self._shapes.setdefault(key, _Shape(*key))
        return PackedRow(shape, array("d", [row[name] for name in numbers]), others or None)

    def _packed(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._packed(item) for item in value]
        return self.pack(value) if isinstance(value, dict) else value


class MetricsTail:
    """The metrics of a run, read as they grow. Several threads may use one."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._forget()

    def read(self) -> Metrics:
        """All rows so far, and what there is to say about them. A file that is not there yet has none.

        A file that was cut back (a resumed run forgets what its checkpoint had not seen) is read again from its start.

        Raises:
            InputError: the file cannot be read, or one of its whole lines is not a step's metrics.
        """
        with self._lock:
            try:
                if self.path.exists() and not self.path.is_file():  # to open a pipe would be to wait for its writer
                    raise InputError(f"{self.path} is no regular file")
                with self.path.open("rb") as file:
                    changed = os.fstat(file.fileno()).st_mtime
                    if not self._continues(file):
                        self._forget()
                    self._read_on(file)
            except InputError:
                self._forget()  # some lines of the last piece may have been taken, and others not
                raise
            except FileNotFoundError:
                self._forget()
                return Metrics(notes=[f"there is no {self.path.name} yet: no step has been made"])
            except OSError as error:
                raise InputError(f"cannot read {self.path}: {error.strerror}") from error
            return self._settled(changed)

    def _forget(self) -> None:
        self._rows: list[PackedRow] = []
        self._packer = Packer()
        self._offset = 0  # behind the last line feed that was read
        self._before = b""  # the bytes before it
        self._lines = 0
        self._rest = b""  # what stands behind the last line feed

    def _continues(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _read_on(self, file: BinaryIO) -> None:
        file.seek(self._offset)
        self._rest = b""
        while chunk := file.read(_CHUNK):
            whole, feed, rest = (self._rest + chunk).rpartition(b"\n")
            for line in whole.split(b"\n") if feed else []:
                if line.strip():
                    self._rows.append(self._packer.pack(parse_line(line, self.path, self._lines + 1)))
                self._lines += 1
                self._offset += len(line) + 1
            if feed:
                self._before = (self._before + whole + feed)[-_REMEMBERED:]
            self._rest = rest
            if len(rest) > LONGEST_LINE:
                raise InputError(f"{self.path}, line {self._lines + 1} is longer than {LONGEST_LINE:,} bytes")

    def _settled(self, changed: float) -> Metrics:
        """The rows, and a last line without its line feed where nobody is writing it."""
        rows: list[Any] = list(self._rows)
        notes = []
        if self._rest.strip() and time.time() - changed > SETTLED_SECONDS:
            try:
                rows.append(parse_line(self._rest, self.path, self._lines + 1))
            except InputError:
                notes.append(f"the last line of {self.path.name} was not written to its end and is left out")
        return Metrics(cast("list[dict[str, Any]]", rows), notes)  # packed rows are read as the dicts they were
