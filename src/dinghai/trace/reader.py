"""Reads the trace: only complete steps, and of them only what is asked for.

What was found out about a file is remembered until the file changes: a page that follows a long run asks again and
again, and most of what it asks about stays as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dinghai.errors import InputError, RunFailed
from dinghai.files import read_json, sha256_file
from dinghai.trace import schema

_MEND = "Remove that step's folder, or restore the file"
_MARKER_BYTES_AT_MOST = 4_000_000  # some 20,000 files; a longer one is no marker of ours
_SETTLED_NS = 2_000_000_000
"""A file that was changed less than this ago is hashed again: clocks of file systems may be as coarse as this, and a
second change would not show."""

_HASHES_AT_MOST = 100_000  # remembered, some 30 MB

Signature = tuple[int, int, int, int]  # of a file's content: bytes, times of the last changes (ns), inode
_hashes: dict[str, tuple[Signature, str]] = {}  # path -> SHA-256 of what it held; for all readers of the process


@dataclass(frozen=True)
class Marker:
    """What `complete.json` says."""

    files: dict[str, dict[str, Any]]  # name -> rows, bytes, sha256
    tokens_total: int  # tokens of the step's completions
    tokens_recorded: int  # those of the groups that the budget left
    groups_total: int
    groups_recorded: int


class TraceReader:
    """The trace of a run. `folder` is the run's `trace` folder; one that does not exist has no steps.

    Keep a reader for as long as the run is looked at: it remembers which steps it found complete. Several threads may
    use it at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._complete: dict[int, tuple[Signature, Marker]] = {}  # step -> its marker, and of which file

    def steps(self) -> list[int]:
        """The complete steps, in order.

        Raises:
            InputError: a newer version of Dinghai wrote the trace.
        """
        return [step for step, why in self._check_steps().items() if why is None]

    def incomplete(self) -> dict[int, str]:
        """The steps that are not shown, and why: the run died while writing them, or a file was damaged later.

        Damage that leaves a file's length as it was shows when the file is read, and here from then on.

        Raises:
            InputError: a newer version of Dinghai wrote the trace.
        """
        return {step: why for step, why in self._check_steps().items() if why is not None}

    def marker(self, step: int) -> Marker:
        """How much of a complete step is recorded.

        Raises:
            InputError: the step is not there, or not complete.
        """
        marker = self._load(step)
        if isinstance(marker, str):
            raise InputError(f"{schema.step_folder(self.folder, step)} cannot be read: {marker}")
        return marker

    def updates(self, step: int) -> list[int]:
        """Indices of the updates that the step's batch of rollouts got."""
        numbers = (schema.update_number(name) for name in self.marker(step).files)
        return sorted({number for number in numbers if number is not None})

    def tokens(self, step: int, update: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The tokens of one update, or of all updates of a step, one row each; ordered by update, then rank.

        Columns are those of `schema.TOKEN_SCHEMA` and `update` (int32), which only the file's name tells. Those of
        `schema.OPTIONAL` are null where the run had no such thing, or the file is older than the column.

        Raises:
            InputError: there is no such step, update or column.
            RunFailed: a file is damaged.
        """
        wanted = list(columns) if columns is not None else ["update", *schema.TOKEN_SCHEMA.names]
        unknown = [name for name in wanted if name != "update" and name not in schema.TOKEN_SCHEMA.names]
        if unknown:
            raise InputError(f"the trace has no column {unknown[0]!r}; it has {', '.join(schema.TOKEN_SCHEMA.names)}")
        marker = self.marker(step)
        if update is not None and update not in self.updates(step):
            raise InputError(f"step {step} has no update {update}; it has {self.updates(step)}")

        tables = []
        for name in sorted(marker.files):
            number = schema.update_number(name)
            if number is None or update not in (None, number):
                continue
            table = self._read(step, name, marker.files[name], [column for column in wanted if column != "update"])
            tables.append(_with_columns(table, wanted, number, marker.files[name]["rows"]))
        return pa.concat_tables(tables) if tables else _empty(wanted)

    def samples(self, step: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The recorded completions of a step, one row each: `schema.samples_schema`.

        Args:
            columns: those that are read; None for all. Texts are most of the file.

        Raises:
            InputError: there is no such step.
            RunFailed: a file is damaged.
        """
        files = self.marker(step).files
        wanted = None if columns is None else list(columns)
        tables = [self._read(step, name, files[name], wanted) for name in sorted(files) if schema.is_samples_file(name)]
        if not tables:
            empty = schema.samples_schema([]).empty_table()
            return empty if wanted is None else empty.select(wanted)
        return pa.concat_tables(tables, promote_options="default")

    def names(self, step: int) -> schema.Names:
        """What the numbers in `region` and `effect` mean, as the step's files say."""
        files = self.marker(step).files
        name = min(files)
        path = schema.step_folder(self.folder, step) / name
        return schema.decode_names(self._open(step, name, files[name]).schema_arrow.metadata, path)

    def _check_steps(self) -> dict[int, str | None]:
        """Each step -> None where it is complete, else why it is not."""
        if not self.folder.is_dir():
            return {}
        with os.scandir(self.folder) as entries:
            numbers = [schema.step_number(entry) for entry in entries]
        found = {step: self._load(step) for step in sorted(number for number in numbers if number is not None)}
        return {step: marker if isinstance(marker, str) else None for step, marker in found.items()}

    def _load(self, step: int) -> Marker | str:
        """The marker of a step, or why the step is not complete."""
        path = (
            f"{self.folder}/{schema.step_folder_name(step)}/{schema.MARKER}"  # a Path would take longer than the rest
        )
        try:
            signature = _signature(path)
        except OSError:
            self._complete.pop(step, None)
            return "it was not finished (no complete.json): the run stopped while writing it, or still runs"
        known = self._complete.get(step)
        if known is not None and known[0] == signature:
            return known[1]
        marker = _parse_marker(Path(path))
        if isinstance(marker, str):
            return marker
        folder = schema.step_folder(self.folder, step)
        for name, facts in marker.files.items():
            if why := _why_damaged(folder / name, facts):
                return f"{name} {why}"
        self._complete[step] = signature, marker
        return marker

    def _open(self, step: int, name: str, expected: dict[str, Any]) -> pq.ParquetFile:
        """A file whose content is what the marker says; `expected` is its entry there."""
        path = schema.step_folder(self.folder, step) / name
        try:
            if why := _why_damaged(path, expected, look_inside=True):
                self._complete.pop(step, None)  # so that the listing of steps looks again
                raise RunFailed(f"{path} is damaged: it {why}. {_MEND}")
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise RunFailed(f"{path} cannot be read ({_first_line(error)}). {_MEND}") from error
        schema.decode_names(file.schema_arrow.metadata, path)  # refuses a newer version
        if file.metadata.num_rows != expected["rows"]:  # before anything is unpacked
            raise RunFailed(f"{path} is damaged: it has {file.metadata.num_rows} rows, not {expected['rows']}. {_MEND}")
        return file

    def _read(self, step: int, name: str, expected: dict[str, Any], columns: list[str] | None) -> pa.Table:
        """The columns that the file has of those asked for; all of them for None."""
        with self._open(step, name, expected) as file:
            try:
                return file.read(columns=columns).replace_schema_metadata(None)
            except (pa.ArrowException, OSError) as error:
                path = schema.step_folder(self.folder, step) / name
                raise RunFailed(f"{path} cannot be read ({_first_line(error)}). {_MEND}") from error


def _signature(path: Path | str) -> Signature:
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _why_damaged(path: Path, expected: dict[str, Any], look_inside: bool = False) -> str:
    """What is wrong with a file, as the rest of a sentence that it begins; empty where nothing is.

    look_inside: whether its content is looked at if it has not been before.
    """
    try:
        signature = _signature(path)
    except FileNotFoundError:
        return f"is missing, and had {expected['bytes']} bytes when the step was finished"
    if signature[0] != expected["bytes"]:
        return f"has {signature[0]} bytes, and had {expected['bytes']} when the step was finished"
    known = _hashes.get(str(path))
    if known is not None and known[0] == signature:
        sha256 = known[1]
    elif look_inside:
        sha256 = sha256_file(path)
        _remember(path, signature, sha256)
    else:
        return ""
    return "" if sha256 == expected["sha256"] else "holds other bytes than were written"


def _remember(path: Path, signature: Signature, sha256: str) -> None:
    last_change = max(signature[1:3])
    if time.time_ns() - last_change < _SETTLED_NS or _signature(path) != signature:
        return
    if len(_hashes) >= _HASHES_AT_MOST:
        _hashes.clear()
    _hashes[str(path)] = signature, sha256


def _with_columns(table: pa.Table, wanted: list[str], update: int, rows: int) -> pa.Table:
    """Those wanted; what is not in the file is the update's number, and null where the file is too old for it."""
    columns = []
    for name in wanted:
        if name == "update":
            columns.append(pa.repeat(pa.scalar(update, pa.int32()), rows))
        elif name in table.column_names:
            columns.append(table[name])
        else:
            columns.append(pa.nulls(rows, schema.TOKEN_SCHEMA.field(name).type))
    return pa.table(columns, names=wanted)


def _parse_marker(path: Path) -> Marker | str:
    try:
        facts = read_json(path, largest=_MARKER_BYTES_AT_MOST)
        schema.check_version(facts, path)
        files = {_file_name(name): _facts(entry) for name, entry in facts["files"].items()}
        tokens, groups = facts["tokens"], facts["groups"]
        return Marker(files, *(int(part[key]) for part in (tokens, groups) for key in ("total", "recorded")))
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        return f"complete.json is damaged ({type(error).__name__}: {str(error)[:80]})"


def _file_name(name: str) -> str:
    """A name from the marker, which must be one of ours: it is joined to a path."""
    if schema.update_number(name) is None and not schema.is_samples_file(name):
        raise ValueError(f"{name!r} is no file of a trace")
    return name


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    return {"rows": int(entry["rows"]), "bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}


def _empty(columns: list[str]) -> pa.Table:
    full = schema.TOKEN_SCHEMA.append(pa.field("update", pa.int32()))
    return full.empty_table().select(columns)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
