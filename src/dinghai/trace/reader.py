"""Reads the trace: only complete steps, and of them only what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dinghai.errors import InputError, RunFailed
from dinghai.files import read_json
from dinghai.trace import schema

_MEND = "Remove that step's folder, or restore the file"
_MARKER_BYTES_AT_MOST = 4_000_000  # some 20,000 files; a longer one is no marker of ours


@dataclass(frozen=True)
class Marker:
    """What `complete.json` says."""

    files: dict[str, dict[str, Any]]  # name -> rows, bytes, sha256
    tokens_total: int  # tokens of the step's completions
    tokens_recorded: int  # those of the groups that the budget left
    groups_total: int
    groups_recorded: int


class TraceReader:
    """The trace of a run. `folder` is the run's `trace` folder; one that does not exist has no steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._markers: dict[int, Marker] = {}

    def steps(self) -> list[int]:
        """The complete steps, in order.

        Raises:
            InputError: a newer version of Dinghai wrote the trace.
        """
        return [step for step, why in self._check_steps().items() if why is None]

    def incomplete(self) -> dict[int, str]:
        """The steps that are not shown, and why: the run died while writing them, or a file was damaged later.

        Raises:
            InputError: a newer version of Dinghai wrote the trace.
        """
        return {step: why for step, why in self._check_steps().items() if why is not None}

    def marker(self, step: int) -> Marker:
        """How much of a complete step is recorded.

        Raises:
            InputError: the step is not there, or not complete.
        """
        if step not in self._markers:
            marker = self._load(schema.step_folder(self.folder, step))
            if isinstance(marker, str):
                raise InputError(f"{schema.step_folder(self.folder, step)} cannot be read: {marker}")
            self._markers[step] = marker
        return self._markers[step]

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
        if update is not None and update not in self.updates(step):
            raise InputError(f"step {step} has no update {update}; it has {self.updates(step)}")

        tables = []
        for name in sorted(self.marker(step).files):
            number = schema.update_number(name)
            if number is None or update not in (None, number):
                continue
            table = self._read(step, name, [column for column in wanted if column != "update"])
            table = table.append_column("update", pa.array([number] * table.num_rows, pa.int32()))
            for column in set(wanted).difference(table.column_names):  # of an older version
                kind = schema.TOKEN_SCHEMA.field(column).type
                table = table.append_column(column, pa.nulls(table.num_rows, kind))
            tables.append(table.select(wanted))
        return pa.concat_tables(tables) if tables else _empty(wanted)

    def samples(self, step: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The recorded completions of a step, one row each: `schema.samples_schema`.

        Args:
            columns: those that are read; None for all. Texts are most of the file.

        Raises:
            InputError: there is no such step.
            RunFailed: a file is damaged.
        """
        names = sorted(name for name in self.marker(step).files if schema.is_samples_file(name))
        wanted = None if columns is None else list(columns)
        tables = [self._read(step, name, wanted) for name in names]
        if not tables:
            empty = schema.samples_schema([]).empty_table()
            return empty if wanted is None else empty.select(wanted)
        return pa.concat_tables(tables, promote_options="default")

    def names(self, step: int) -> schema.Names:
        """What the numbers in `region` and `effect` mean, as the step's files say."""
        name = min(self.marker(step).files)
        path = schema.step_folder(self.folder, step) / name
        return schema.decode_names(self._open(step, name).schema_arrow.metadata, path)

    def _check_steps(self) -> dict[int, str | None]:
        """Each step -> None where it is complete, else why it is not."""
        if not self.folder.is_dir():
            return {}
        found: dict[int, str | None] = {}
        for path in sorted(self.folder.iterdir()):
            step = schema.step_number(path)
            if step is None:
                continue
            marker = self._load(path)
            if isinstance(marker, Marker):
                self._markers[step] = marker
            found[step] = marker if isinstance(marker, str) else None
        return dict(sorted(found.items()))

    def _load(self, folder: Path) -> Marker | str:
        """The marker of a step's folder, or why the step is not complete."""
        path = folder / schema.MARKER
        if not path.is_file():
            return "it was not finished (no complete.json): the run stopped while writing it, or still runs"
        marker = _parse_marker(path)
        if isinstance(marker, str):
            return marker
        for name, facts in marker.files.items():
            file = folder / name
            size = file.stat().st_size if file.is_file() else None
            if size != facts["bytes"]:
                found = "missing" if size is None else f"{size} bytes long"
                return f"{name} is {found}, and was {facts['bytes']} bytes when the step was finished"
        return marker

    def _open(self, step: int, name: str) -> pq.ParquetFile:
        path = schema.step_folder(self.folder, step) / name
        expected = self.marker(step).files[name]
        try:
            content = path.read_bytes()
            facts = schema.file_facts(expected["rows"], content)
            if facts != expected:
                raise RunFailed(f"{path} is damaged: its content is not what was written. {_MEND}")
            file = pq.ParquetFile(pa.BufferReader(content))
        except (pa.ArrowException, OSError) as error:
            raise RunFailed(f"{path} cannot be read ({_first_line(error)}). {_MEND}") from error
        schema.decode_names(file.schema_arrow.metadata, path)  # refuses a newer version
        if file.metadata.num_rows != expected["rows"]:  # before anything is unpacked
            raise RunFailed(f"{path} is damaged: it has {file.metadata.num_rows} rows, not {expected['rows']}. {_MEND}")
        return file

    def _read(self, step: int, name: str, columns: list[str] | None) -> pa.Table:
        file = self._open(step, name)
        try:
            table = file.read(columns=columns).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            path = schema.step_folder(self.folder, step) / name
            raise RunFailed(f"{path} cannot be read ({_first_line(error)}). {_MEND}") from error
        return table


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
