"""The tokens of a step as columns, and what follows from them: ratio, unclipped weight, gradient and what was removed.

Shapes: N tokens, of one update or of several.

This is the one place where these are derived from the columns of a trace. They are the terms of the sums of
`dinghai.objective.stats`, so that whatever adds them up agrees with `metrics.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from dinghai.errors import RunFailed
from dinghai.lens.regions import EFFECTS, REGIONS, region_name
from dinghai.trace import TraceReader
from dinghai.trace.schema import OF_SCORED, OPTIONAL, TOKEN_SCHEMA

_MASKED, _NO_SIGNAL, _INSIDE, _DROPPED = (REGIONS.index(n) for n in ("masked", "no_signal", "inside", "dropped"))
_STOPPED, _KEPT, _AMPLIFIED = (EFFECTS.index(name) for name in ("stopped", "kept", "amplified"))

# What is derived -> the columns that it needs.
_NEEDS: dict[str, tuple[str, ...]] = {"log_ratio": ("log_ratio", "logp_new", "logp_old")}
_NEEDS["ratio"] = _NEEDS["log_ratio"]
_NEEDS["weight_unclipped"] = (*_NEEDS["ratio"], "advantage", "correction")
_NEEDS["norm"] = ("logp_new", "advantage", "factor")
_NEEDS["gradient"] = (*_NEEDS["weight_unclipped"], "factor")
_NEEDS["removed"] = (*_NEEDS["gradient"], "weight", "effect")
_NEEDS["scored"] = ("logp_new",)
_NEEDS["signal"] = ("advantage", "region")
_NEEDS["stopped"] = ("effect",)
_NEEDS["outside"] = _NEEDS["signal"]


class _Column:
    """A column of the trace, as an attribute of `Tokens`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, tokens: Tokens, owner: type) -> np.ndarray:
        return tokens.column(self.name)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Columns of equal length N. Those that were not asked for are not there, and say so when they are touched.

    A token that was never scored (`scored` is False) has no signal, the weight 0 and no gradient. What a pass through
    the model would have told of it is NaN: its log-probs but the sampler's, its ratio, its entropy, its correction.

    Sums over tokens belong in float64: `np.sum(x, dtype=np.float64)`, or `np.bincount`, which does so by itself.
    """

    columns: Mapping[str, np.ndarray]  # by name, as `read_tokens` gives them

    sample = _Column()  # int32, id of the completion, unique within the step
    position = _Column()  # int32, within the completion, from 0
    token = _Column()  # int32, id in the vocabulary
    update = _Column()  # int32, index of the update within the batch
    logp_sampler = _Column()  # float32, nats, as are all log-probs
    logp_old = _Column()
    logp_new = _Column()
    advantage = _Column()  # float32
    weight = _Column()  # float32, coefficient of ∇log π_new, rollout correction included
    region = _Column()  # int64, index in REGIONS
    effect = _Column()  # int64, index in EFFECTS
    entropy = _Column()  # float32, nats
    factor = _Column()  # float32, f_t of the reduction; 1 in traces that do not know it
    scored = _Column()  # bool: the model read it; False: no token of its sample had a signal, so nothing was computed

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def column(self, name: str) -> np.ndarray:
        """A column by its name.

        Raises:
            KeyError: it was not asked for when the tokens were read.
        """
        if name not in self.columns:
            raise KeyError(f"the column {name!r} was not read: name it when calling read_tokens")
        return self.columns[name]

    @property
    def correction(self) -> np.ndarray | None:
        """[N] float32, factor of the rollout correction in `weight`, 0 where it dropped the token; None without one."""
        return self.columns.get("correction")

    @property
    def kl_weight(self) -> np.ndarray | None:
        """[N] float32, what a KL penalty in the loss adds to `weight`; None without one."""
        return self.columns.get("kl_weight")

    def rows(self, which: slice | np.ndarray) -> Tokens:
        """Some of the tokens: a slice (without a copy), indices or a mask."""
        return Tokens({name: column[which] for name, column in self.columns.items()})

    @cached_property
    def log_ratio(self) -> np.ndarray:
        """Nats, [N] float32, of the ratio that the rule saw: its sequence's where it saw that, else the token's own."""
        stored = self.columns.get("log_ratio")
        with np.errstate(invalid="ignore"):  # of two log-probs of -inf the difference is NaN, which is counted as such
            return self.logp_new - self.logp_old if stored is None else stored

    @cached_property
    def ratio(self) -> np.ndarray:
        """r, [N] float32; infinite where it overflows, as it did in the loss."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_ratio)

    @cached_property
    def weight_unclipped(self) -> np.ndarray:
        """w0, [N] float32: r·A, times the rollout correction where it kept the token."""
        with np.errstate(over="ignore", invalid="ignore"):
            unclipped_N = self.ratio * self.advantage
            if self.correction is not None:
                unclipped_N *= np.where(self.correction == 0, np.float32(1), self.correction)
        return np.where(self._silent, np.float32(0), unclipped_N)

    @cached_property
    def gradient(self) -> np.ndarray:
        """f·|w0|·(1-p), [N] float32: the size of the gradient that the token would have without the rule."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.abs(self.weight_unclipped) * self.norm

    @cached_property
    def removed(self) -> np.ndarray:
        """f·max(0, |w0| - max(0, w·sign w0))·(1-p), [N] float32: the part of `gradient` that the rule took away."""
        full_N = np.abs(self.weight_unclipped)
        with np.errstate(over="ignore", invalid="ignore"):
            along_N = np.maximum(self.weight * np.sign(self.weight_unclipped), np.float32(0))
            removed_N = np.maximum(full_N - along_N, np.float32(0))
            # The trace rounds weights, which alone would take a little from half of the tokens that were left alone.
            untouched_N = (self.effect == _KEPT) | (self.effect == _AMPLIFIED)
            removed_N[untouched_N & np.isfinite(self.weight)] = 0
            return removed_N * self.norm

    @cached_property
    def signal(self) -> np.ndarray:
        """A != 0, [N] bool; never where the token was masked."""
        return (self.advantage != 0) & (self.region != _MASKED)

    @cached_property
    def stopped(self) -> np.ndarray:
        """The weight is exactly 0 though there is a signal, [N] bool."""
        return self.effect == _STOPPED

    @cached_property
    def outside(self) -> np.ndarray:
        """There is a signal and the ratio is outside the band, stopped or not, [N] bool: what `band_fraction` counts.

        Tokens that a rollout correction dropped are not counted here.
        """
        return self.signal & (self.region != _INSIDE) & (self.region != _DROPPED) & (self.region != _NO_SIGNAL)

    @cached_property
    def norm(self) -> np.ndarray:
        """f·(1-p), [N] float32, 0 where there is no gradient.

        1-p, p = π_new(token), is within a factor √2 the size of ∇log π at the logits.
        """
        norm_N = self.factor * -np.expm1(np.minimum(self.logp_new, np.float32(0)))
        return np.where(self._silent, np.float32(0), norm_N)

    @cached_property
    def _silent(self) -> np.ndarray:
        """Without a gradient whatever its log-probs are, known or not, [N] bool."""
        return (self.advantage == 0) | ~self.scored


def read_tokens(
    reader: TraceReader, step: int, update: int | None = None, columns: Iterable[str] | None = None
) -> Tokens:
    """The tokens of one update, or of all updates of a step, ordered by update, then rank.

    Args:
        columns: names of attributes of `Tokens` that will be used, derived ones included; None for all. What they need
            is read, and no more.

    Raises:
        InputError: there is no such step or update; or a name is of no attribute.
        RunFailed: a file is damaged.
    """
    table = reader.tokens(step, update, _stored(columns))
    names = reader.names(step)
    found: dict[str, np.ndarray] = {}
    for name in table.column_names:
        column = table[name]
        if name == "region":
            found[name] = _renumbered(column.to_numpy(), names.regions, REGIONS, f"region of step {step}")
        elif name == "effect":
            found[name] = _renumbered(column.to_numpy(), names.effects, EFFECTS, f"effect of step {step}")
        elif _is_absent(column, name):
            if name == "factor":
                found[name] = np.broadcast_to(np.float32(1), len(column))
        elif column.null_count and name not in OF_SCORED:
            raise _damaged(step, f"its column {name} has gaps")
        else:
            found[name] = column.to_numpy()  # null becomes NaN
    scored_N = _scored(table, step)
    if scored_N is not None:
        found["scored"] = scored_N
        if "region" in found and not np.isin(found["region"][~scored_N], [_NO_SIGNAL, _MASKED]).all():
            raise _damaged(step, "it has tokens with a signal that were never scored")
    return Tokens(found)


def _is_absent(column: pa.ChunkedArray, name: str) -> bool:
    """The run had no such thing, or the file is older than the column."""
    return name in OPTIONAL and column.null_count == len(column)


def _scored(table: pa.Table, step: int) -> np.ndarray | None:
    """Which tokens were scored, [N] bool, as the gaps of the columns tell; None where no such column was read."""
    scored_N = None
    for name in OF_SCORED:
        if name not in table.column_names or _is_absent(table[name], name):
            continue
        column = table[name]
        here_N = column.is_valid().to_numpy() if column.null_count else np.broadcast_to(np.True_, len(column))
        if scored_N is not None and not np.array_equal(scored_N, here_N):
            raise _damaged(step, f"its column {name} has gaps")
        scored_N = here_N
    return scored_N


def _damaged(step: int, why: str) -> RunFailed:
    return RunFailed(f"the trace of step {step} is damaged: {why}. Remove that step's folder")


def _stored(columns: Iterable[str] | None) -> list[str]:
    """The columns to read, in the order of the schema."""
    stored = ["update", *TOKEN_SCHEMA.names]
    if columns is None:
        return stored
    needed = {name for asked in columns for name in _NEEDS.get(asked, (asked,))}
    unknown = sorted(needed.difference(stored))
    return [name for name in stored if name in needed] + unknown  # which the reader refuses by name


def _renumbered(numbers_N: np.ndarray, stored: Mapping[int, str], known: list[str], what: str) -> np.ndarray:
    """From the numbers of a trace, which its own table explains, to indices in `known`: [N] int64."""
    place = np.full(256, -1, dtype=np.int64)  # wide enough to be reckoned with
    for number, name in stored.items():
        if 0 <= number < 256 and region_name(name) in known:
            place[number] = known.index(region_name(name))
    found_N = place[numbers_N]
    if len(found_N) and found_N.min() < 0:
        number = int(numbers_N[found_N < 0][0])
        raise RunFailed(
            f"the trace has a {what} that this Dinghai does not know: number {number}, "
            f"{stored.get(number, 'without a name')}. Remove that step's folder, or upgrade Dinghai"
        )
    return found_N
