"""Writes the trace. The same inputs give the same bytes, so a resumed run's trace equals an undisturbed one's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinghai.trace import schema
from dinghai.trace.files import changing_disk, wait_for_disk, write_atomically, write_new

ZSTD_LEVEL = 3  # level 9 gains 1 % on log-probs and takes twice the time, in the training loop


@dataclass(frozen=True)
class Samples:
    """The completions of one step, as lists of equal length S."""

    sample: list[int]  # ids, unique within the step over all ranks
    group: list[int]  # completions of one prompt share a number
    prompt_id: list[str]
    prompt: list[str]
    completion: list[str]
    tokens: list[int]  # length of each completion; what the budget counts
    finished: list[bool]  # ended by the end-of-sequence token
    reward: list[float]  # total
    reward_parts: Mapping[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self._columns().items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the lists of Samples differ in length: {lengths}")
        if len(set(self.sample)) != len(self.sample):
            raise ValueError("the sample ids of a step must be unique")

    def _columns(self) -> dict[str, list[Any]]:
        names = ("sample", "group", "prompt_id", "prompt", "completion", "tokens", "finished", "reward")
        parts = {f"reward/{name}": values for name, values in self.reward_parts.items()}
        return {name: getattr(self, name) for name in names} | parts

    def to_table(self, keep: list[bool]) -> pa.Table:
        """The kept rows as an Arrow table of `schema.samples_schema`."""
        types = schema.samples_schema(list(self.reward_parts))
        columns = self._columns()
        text = {"prompt_id", "prompt", "completion"}
        arrays = []
        for name in types.names:
            values = [value for value, kept in zip(columns[name], keep, strict=True) if kept]
            values = [_encodable(value) for value in values] if name in text else values
            arrays.append(pa.array(values, type=types.field(name).type))
        return pa.Table.from_arrays(arrays, schema=types)


def _encodable(text: str) -> str:
    """Lone surrogates cannot be stored as UTF-8; they are kept visibly as escapes such as \\ud800."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class TraceWriter:
    """Records each token's fate, one step at a time: `begin_step`, `add_update` for every update, `finish_step`.

    Args:
        folder: the run's `trace` folder; made when needed.
        tokens_per_update: whole groups are sampled so that no update records more tokens than this; one group is
            always kept, however long.
        seed: with the step's number it decides which groups are kept.
        regions, effects: what the numbers in those columns mean.
        rank: of this process. Rank 0 begins a step before the others and finishes it after them.
    """

    def __init__(
        self,
        folder: Path,
        tokens_per_update: int,
        seed: int,
        rank: int = 0,
        *,
        regions: Mapping[int, str],
        effects: Mapping[int, str],
    ) -> None:
        self.folder = Path(folder)
        self.tokens_per_update = tokens_per_update
        self.seed = seed
        self.rank = rank
        self.names = schema.Names(regions=dict(regions), effects=dict(effects))
        self._step: _OpenStep | None = None

    def begin_step(self, step: int, samples: Samples) -> None:
        """Choose the groups that are recorded and write their samples. What the step's folder held before is removed.

        Raises:
            RunFailed: the disk is full or may not be written to.
        """
        step_folder = schema.step_folder(self.folder, step)
        if self.rank == 0 and step_folder.exists():
            _remove_step(step_folder)
        changing_disk(step_folder, lambda: step_folder.mkdir(parents=True, exist_ok=True))

        kept = choose_groups(samples.group, samples.tokens, self.tokens_per_update, self.seed, step)
        keep = [group in kept for group in samples.group]
        self._step = _OpenStep(
            step=step,
            folder=step_folder,
            kept_samples=np.array(samples.sample, dtype=np.int64)[np.array(keep, dtype=bool)],
            keeps_all=all(keep),
            tokens_total=sum(samples.tokens),
            tokens_recorded=sum(n for n, kept_one in zip(samples.tokens, keep, strict=True) if kept_one),
            groups_total=len(set(samples.group)),
            groups_recorded=len(kept),
        )
        self._write(schema.samples_file_name(self.rank), samples.to_table(keep), dictionary=["prompt_id", "prompt"])

    def add_update(self, update: int, columns: Mapping[str, Any], sample: Any) -> None:
        """Write one update's tokens, those of kept samples.

        Args:
            update: its index within the batch of rollouts.
            columns: each column of `schema.TOKEN_SCHEMA` but `sample`, [N], numpy or torch on any device. Those of
                `schema.OPTIONAL` may be left out, and are then null. `scored`, [N] bool, is not stored: where it is
                False, the columns `schema.OF_SCORED` are null, whatever they hold. Without it every token is scored.
            sample: id of the completion that each token belongs to, [N].

        Raises:
            RunFailed: the disk is full or may not be written to.
        """
        step = self._open_step()
        sample_N = _to_numpy(sample, np.int32)
        rows = None if step.keeps_all else np.isin(sample_N, step.kept_samples)
        unscored_N = _unscored(columns, sample_N.shape)
        arrays = []
        stored = [
            column for column in schema.TOKEN_SCHEMA if column.name in columns or column.name not in schema.OPTIONAL
        ]
        for name, kind in ((column.name, column.type) for column in stored):
            values_N = sample_N if name == "sample" else _to_numpy(columns[name], kind.to_pandas_dtype())
            if values_N.shape != sample_N.shape:
                raise ValueError(f"trace column {name} has shape {values_N.shape}, sample has {sample_N.shape}")
            values_N = values_N if rows is None else values_N[rows]
            null_N = unscored_N if name in schema.OF_SCORED else None
            null_N = null_N if null_N is None or rows is None else null_N[rows]
            arrays.append(pa.array(_rounded(name, values_N), type=kind, mask=null_N, from_pandas=False))
        table = pa.Table.from_arrays(arrays, schema=pa.schema(stored))
        name = schema.update_file_name(update, self.rank)
        self._write(name, table, dictionary=schema.TOKEN_DICTIONARY, encoding=schema.TOKEN_ENCODING)

    def finish_step(self) -> None:
        """Write the marker that makes the step complete (rank 0), when all else is on the disk.

        Only here is the disk waited for: until then the files count for nothing.

        Raises:
            RunFailed: the disk is full or may not be written to.
        """
        step = self._open_step()
        for name in step.files:
            wait_for_disk(step.folder / name)
        wait_for_disk(step.folder)
        if self.rank == 0:
            content = json.dumps(self._marker(step), indent=1, sort_keys=True) + "\n"
            write_atomically(step.folder / schema.MARKER, content.encode())
            wait_for_disk(self.folder)
        self._step = None

    def _marker(self, step: _OpenStep) -> dict[str, Any]:
        files = dict(step.files)
        for path in step.folder.glob("*.parquet"):  # those of the other ranks
            if path.name not in files:
                files[path.name] = schema.file_facts(pq.read_metadata(path).num_rows, path.read_bytes())
        return {
            "version": schema.TRACE_VERSION,
            "step": step.step,
            "files": files,
            "tokens": {"total": step.tokens_total, "recorded": step.tokens_recorded, "budget": self.tokens_per_update},
            "groups": {"total": step.groups_total, "recorded": step.groups_recorded},
        }

    def _open_step(self) -> _OpenStep:
        if self._step is None:
            raise ValueError("no step is open: call begin_step first")
        return self._step

    def _write(
        self, name: str, table: pa.Table, dictionary: list[str], encoding: Mapping[str, str] | None = None
    ) -> None:
        step = self._open_step()
        content = pa.BufferOutputStream()
        with pq.ParquetWriter(
            content,
            table.schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=dictionary,
            column_encoding={name: how for name, how in (encoding or {}).items() if name in table.column_names} or None,
            write_statistics=False,
            store_schema=False,  # Parquet's own says it; a second one is a tenth of a small file
        ) as file:
            file.write_table(table)
            file.add_key_value_metadata(schema.encode_metadata(self.names, step.step, self.rank))
        data = content.getvalue().to_pybytes()
        write_new(step.folder / name, data)
        step.files[name] = schema.file_facts(table.num_rows, data)


@dataclass
class _OpenStep:
    step: int
    folder: Path
    kept_samples: np.ndarray
    keeps_all: bool
    tokens_total: int
    tokens_recorded: int
    groups_total: int
    groups_recorded: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


def choose_groups(group: list[int], tokens: list[int], budget: int, seed: int, step: int) -> set[int]:
    """Whole groups, in an order that only (seed, step) decides, until the next would exceed the budget.

    Stopping there, rather than looking for a shorter group that fits, keeps the choice from favouring short ones.
    The first group is kept even where it is longer than the budget.
    """
    tokens_of: dict[int, int] = {}
    for number, count in zip(group, tokens, strict=True):
        tokens_of[number] = tokens_of.get(number, 0) + count
    if sum(tokens_of.values()) <= budget:
        return set(tokens_of)

    # A hash and not a generator of random numbers: its order is the same in every version of every library.
    def draw(number: int) -> bytes:
        return hashlib.sha256(f"{seed}/{step}/{number}".encode()).digest()

    kept: set[int] = set()
    used = 0
    for number in sorted(tokens_of, key=draw):
        used += tokens_of[number]
        if kept and used > budget:
            break
        kept.add(number)
    return kept


def discard_steps_from(folder: Path, step: int) -> None:
    """Remove step `step` and all later ones, complete or not, from a trace folder: a resumed run writes them anew.

    Raises:
        RunFailed: they may not be removed.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        number = schema.step_number(path)
        if number is not None and number >= step:
            _remove_step(path)


def _remove_step(path: Path) -> None:
    # The marker goes first: should the removal be interrupted, the step must not look complete.
    changing_disk(path, lambda: (path / schema.MARKER).unlink(missing_ok=True))
    changing_disk(path, lambda: shutil.rmtree(path))


def _to_numpy(values: Any, dtype: Any) -> np.ndarray:
    """[N] as a contiguous array; takes torch tensors on any device and of any precision without importing torch."""
    if hasattr(values, "detach"):
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.ascontiguousarray(values, dtype=dtype)


def _unscored(columns: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """Which tokens the model never read, [N] bool; None where it read them all."""
    if "scored" not in columns:
        return None
    unscored_N = ~_to_numpy(columns["scored"], np.bool_)
    if unscored_N.shape != shape:
        raise ValueError(f"scored has shape {unscored_N.shape}, sample has {shape}")
    if _to_numpy(columns["weight"], np.float32)[unscored_N].any():
        raise ValueError("a token that was never scored has a weight other than 0")
    return unscored_N


def _rounded(name: str, values_N: np.ndarray) -> np.ndarray:
    """The column to the precision that the schema gives it."""
    if name in schema.FRACTION_BITS:
        return round_to_fraction(values_N, schema.FRACTION_BITS[name])
    if name in schema.SIGNIFICANT_BITS:
        return round_to_bits(values_N, schema.SIGNIFICANT_BITS[name])
    return values_N


def round_to_fraction(values_N: np.ndarray, bits: int) -> np.ndarray:
    """Round float32 to multiples of 2**-bits; infinities and NaN stay."""
    grid = 2.0**bits
    return (np.rint(values_N.astype(np.float64) * grid) / grid).astype(np.float32)


def round_to_bits(values_N: np.ndarray, bits: int) -> np.ndarray:
    """Round float32 to its `bits` leading significant bits, to even. Zero, infinities and NaN stay.

    The bytes that this zeroes cost no disk, while the column stays float32, which every reader of Parquet knows.
    """
    drop = 24 - bits
    pattern = np.ascontiguousarray(values_N, dtype=np.float32).view(np.uint32)
    to_even = (pattern >> drop) & 1
    half = np.uint32((1 << (drop - 1)) - 1)
    keep = np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    rounded = ((pattern + half + to_even) & keep).view(np.float32)
    return np.where(np.isfinite(values_N), rounded, values_N)
