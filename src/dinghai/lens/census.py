"""A census: where the tokens of an update, a step or a run lie, what became of them, and which gradient they lost.

Shapes: N tokens, R regions, F = 8 combinations of a token's three flags, K rows of a table.

A `Census` holds counts and sums only, so it adds up over updates and steps. It is filled in one pass, update by update,
and never holds more of a trace than one of them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinghai.errors import InputError, RunFailed
from dinghai.lens.bins import (
    FINE_POSITION_EDGES,
    PROBABILITY_EDGES,
    Bins,
    bins_for,
    place_position,
    place_probability,
    place_reward,
    position_rows,
)
from dinghai.lens.regions import REGIONS
from dinghai.lens.rewards import GroupRewards, group_rewards
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.trace import Marker, TraceReader
from dinghai.trace.schema import update_number

ROWS_AT_MOST = 4_000_000  # of tokens, that the census of a whole run reads
TOKENS_SHOWN = 30  # ids of the vocabulary

_COLUMNS = (
    *("sample", "position", "token", "region", "logp_sampler", "logp_old"),
    *("log_ratio", "advantage", "gradient", "removed", "signal", "stopped", "outside", "scored"),
)
_ROWS_AT_ONCE = 1 << 16  # what is worked on then stays in the processor's cache
_ROWS_A_FILE_COSTS = 4_000  # opening a file takes 1 to 2 ms, in which more tokens than these are counted
_LARGEST_ID = 1 << 21  # no vocabulary is that large, and memory grows with the largest id

_FLAGS = 8  # signal, 2·stopped, 4·outside
_OF_FLAGS = np.array([[1, flags & 1, flags >> 1 & 1, flags >> 2 & 1] for flags in range(_FLAGS)])
_COUNTS = ("tokens", "signal", "stopped", "outside")

# |log π_old - log π_sampler|: the leading bits of a float32 are its exponent and its first digits, so that without the
# others there are 16 bins each time that the number doubles, from below what a trace resolves to far above any noise.
_NOISE_DROPPED_BITS = 19
_NOISE_FIRST, _NOISE_END = ((127 + exponent) << 4 for exponent in (-21, 7))  # from 2^-21 to 2^7 nats
_NOISE_EDGES = (np.arange(_NOISE_FIRST, _NOISE_END + 1, dtype=np.uint32) << _NOISE_DROPPED_BITS).view(np.float32)


class Census:
    """Counts and sums of tokens. Masked tokens took no part and are in none of them but their own."""

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        self.masked = 0
        self.unscored = 0  # have no ratio and no probability, so are in no table that is about these
        self.not_finite = 0  # log-ratio, advantage, weight or reward is NaN or infinite: in no table below
        self.flags = np.zeros(_FLAGS, dtype=np.int64)  # of all tokens, finite or not
        cells = bins.map_log_ratio.count * bins.map_advantage.count * len(REGIONS)
        self.cells = np.zeros((cells, 2), dtype=np.int64)  # tokens that were not stopped, and that were
        self.cells_removed = np.zeros(cells)
        self.ratio = np.zeros((len(REGIONS), bins.ratio.count), dtype=np.int64)
        self.noise = np.zeros(len(_NOISE_EDGES), dtype=np.int64)  # first: exactly 0
        self.position = _Table(len(FINE_POSITION_EDGES) - 1)
        self.probability = _Table(len(PROBABILITY_EDGES) - 1)
        self.reward = _Table(len(bins.reward_edges) - 1)
        self.token = _Table(0)  # one row an id, as many as were met

    def __add__(self, other: Census) -> Census:
        """The census of both. They must have the same bins."""
        if self.bins != other.bins:
            raise ValueError("censuses with different bins do not add up")
        both = Census(self.bins)
        for name, value in vars(self).items():
            if name != "bins":
                setattr(both, name, value + getattr(other, name))
        return both

    def count(self, tokens: Tokens, rewards: GroupRewards) -> None:
        """Add the tokens of one update, or of several.

        Args:
            tokens: with the columns that a census needs.
            rewards: of the same step.

        Raises:
            RunFailed: the tokens are not of these completions, or their ids are no ids.
        """
        if len(tokens) and (tokens.position.min() < 0 or tokens.token.min() < 0 or tokens.token.max() >= _LARGEST_ID):
            raise RunFailed(f"the trace of step {rewards.step} is damaged: a token's id or position is out of range")
        finite_S = np.isfinite(rewards.reward)
        reward_S = np.where(finite_S, place_reward(np.where(finite_S, rewards.reward, 0.0), self.bins.reward_edges), -1)
        for first in range(0, len(tokens), _ROWS_AT_ONCE):
            part = tokens.rows(slice(first, first + _ROWS_AT_ONCE))
            self._count(part, reward_S[rewards.row(part.sample)])

    def _count(self, tokens: Tokens, reward_N: np.ndarray) -> None:
        """`reward_N`: the bin of the group's reward, -1 where it is not finite."""
        takes_part_N = tokens.region != REGIONS.index("masked")
        if not takes_part_N.all():
            self.masked += int(np.count_nonzero(~takes_part_N))
            tokens, reward_N = tokens.rows(takes_part_N), reward_N[takes_part_N]
        flags_N = tokens.signal + 2 * tokens.stopped.view(np.uint8) + 4 * tokens.outside.view(np.uint8)
        self.flags += np.bincount(flags_N, minlength=_FLAGS)
        finite_N = reward_N >= 0
        for column_N in (tokens.advantage, tokens.gradient, tokens.removed):
            finite_N &= np.isfinite(column_N)
        finite_N &= np.isfinite(tokens.log_ratio) | ~tokens.scored
        if not finite_N.all():
            self.not_finite += int(np.count_nonzero(~finite_N))
            tokens, reward_N, flags_N = tokens.rows(finite_N), reward_N[finite_N], flags_N[finite_N]
        fates = _Fates(flags_N, tokens)
        self.position.count(place_position(tokens.position), fates)
        self.reward.count(reward_N, fates)
        self.token.count_ids(tokens.token, fates)
        self._count_scored(tokens, fates)

    def _count_scored(self, tokens: Tokens, fates: _Fates) -> None:
        """What is told by a pass through the model, of the tokens that had one."""
        scored_N = tokens.scored
        if not scored_N.all():
            self.unscored += int(np.count_nonzero(~scored_N))
            tokens = tokens.rows(scored_N)
            fates = _Fates(fates.flags[scored_N], tokens)
        self._count_places(tokens)
        self._count_noise(tokens.logp_old, tokens.logp_sampler)
        self.probability.count(place_probability(tokens.logp_old), fates)

    def _count_places(self, tokens: Tokens) -> None:
        """The map and the distribution of ratios."""
        bins = self.bins
        cell_N = bins.map_log_ratio.place(tokens.log_ratio)
        cell_N *= bins.map_advantage.count
        cell_N += bins.map_advantage.place(tokens.advantage)
        cell_N *= len(REGIONS)
        cell_N += tokens.region
        lost = np.flatnonzero(tokens.removed)
        self.cells_removed += np.bincount(cell_N[lost], tokens.removed[lost], minlength=len(self.cells_removed))
        cell_N *= 2
        cell_N += tokens.stopped
        self.cells += np.bincount(cell_N, minlength=self.cells.size).reshape(self.cells.shape)
        place_N = bins.ratio.place(tokens.log_ratio) + tokens.region * bins.ratio.count
        self.ratio += np.bincount(place_N, minlength=self.ratio.size).reshape(self.ratio.shape)

    def _count_noise(self, logp_old_N: np.ndarray, logp_sampler_N: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            apart_N = np.abs(logp_old_N - logp_sampler_N)
        apart_N = apart_N[np.isfinite(apart_N)]
        place_N = (apart_N.view(np.uint32) >> _NOISE_DROPPED_BITS).astype(np.int64)
        place_N = np.clip(place_N, _NOISE_FIRST, _NOISE_END - 1) - (_NOISE_FIRST - 1)
        place_N[apart_N == 0] = 0
        self.noise += np.bincount(place_N, minlength=len(self.noise))

    def as_dict(self) -> dict[str, Any]:
        """The census as JSON: see `census`."""
        whole = self.probability.rows([(0, len(PROBABILITY_EDGES) - 1)])[0]
        counts = dict(zip(_COUNTS, (self.flags @ _OF_FLAGS).tolist(), strict=True))
        positions = position_rows(self.position.used())
        return {
            **counts,
            "gradient": whole["gradient"],
            "removed": whole["removed"],
            "masked": self.masked,
            "unscored": self.unscored,
            "not_finite": self.not_finite,
            "map": {
                "log_ratio_edges": self.bins.map_log_ratio.edges,
                "advantage_edges": self.bins.map_advantage.edges,
                "cells": self._cells(),
            },
            "ratio": {
                "edges": self.bins.ratio.edges,
                "regions": {name: row.tolist() for name, row in zip(REGIONS, self.ratio, strict=True) if row.any()},
                "noise": self._noise(),
            },
            "by_position": {
                "edges": [0, *(FINE_POSITION_EDGES[end] for _, end in positions)],
                "rows": self.position.rows(positions),
            },
            "by_probability": {"edges": list(PROBABILITY_EDGES), "rows": self.probability.rows()},
            "by_reward": {"edges": list(self.bins.reward_edges), "rows": self.reward.rows()},
            "by_token": [{"token": int(i), **self.token.rows([(i, i + 1)])[0]} for i in self._tokens_that_lost_most()],
        }

    def _cells(self) -> list[list[Any]]:
        """Those with tokens: [log-ratio, advantage, region, tokens, stopped, removed]."""
        shape = (self.bins.map_log_ratio.count, self.bins.map_advantage.count, len(REGIONS))
        tokens = self.cells.sum(axis=1)
        found = np.flatnonzero(tokens)
        places = zip(*(axis.tolist() for axis in np.unravel_index(found, shape)), strict=True)
        facts = zip(
            tokens[found].tolist(), self.cells[found, 1].tolist(), self.cells_removed[found].tolist(), strict=True
        )
        return [
            [*place, count, stopped, _short(lost)] for place, (count, stopped, lost) in zip(places, facts, strict=True)
        ]

    def _noise(self) -> dict[str, Any] | None:
        tokens = int(self.noise.sum())
        if not tokens:
            return None
        return {
            "sampler_median": self._noise_quantile(0.5),
            "sampler_q95": self._noise_quantile(0.95),
            "tokens": tokens,
        }

    def _noise_quantile(self, share: float) -> float:
        """Nats, to 6 %: as if the numbers lay evenly within a bin."""
        below = np.cumsum(self.noise)
        rank = share * below[-1]
        place = int(np.searchsorted(below, rank))
        if place == 0:
            return 0.0
        low = 0.0 if place == 1 else float(_NOISE_EDGES[place - 1])
        within = (rank - below[place - 1]) / self.noise[place]
        return _short(low + within * (float(_NOISE_EDGES[place]) - low))

    def _tokens_that_lost_most(self) -> list[int]:
        removed, stopped = self.token.sums[:, 1], (self.token.flags @ _OF_FLAGS)[:, _COUNTS.index("stopped")]
        lost = np.flatnonzero((removed > 0) | (stopped > 0))
        order = np.lexsort((lost, -stopped[lost], -removed[lost]))
        return lost[order[:TOKENS_SHOWN]].tolist()


class _Fates:
    """What is counted of each token: its flags, and its gradient and what was removed of it."""

    def __init__(self, flags_N: np.ndarray, tokens: Tokens) -> None:
        self.flags = flags_N
        self.gradient = tokens.gradient.astype(np.float64)
        self.lost = np.flatnonzero(tokens.removed)  # mostly few
        self.removed = tokens.removed[self.lost].astype(np.float64)


class _Table:
    """Counts by flags [K, F] and sums of gradient and removed gradient [K, 2], float64."""

    def __init__(self, rows: int) -> None:
        self.flags = np.zeros((rows, _FLAGS), dtype=np.int64)
        self.sums = np.zeros((rows, 2))

    def __add__(self, other: _Table) -> _Table:
        both = _Table(max(len(self.sums), len(other.sums)))
        for table in (self, other):
            both.flags[: len(table.flags)] += table.flags
            both.sums[: len(table.sums)] += table.sums
        return both

    def count(self, row_N: np.ndarray, fates: _Fates) -> None:
        """Add each token to its row, [N] int64."""
        rows = len(self.sums)
        self.flags += np.bincount(row_N * _FLAGS + fates.flags, minlength=self.flags.size).reshape(self.flags.shape)
        self.sums[:, 0] += np.bincount(row_N, fates.gradient, minlength=rows)
        self.sums[:, 1] += np.bincount(row_N[fates.lost], fates.removed, minlength=rows)

    def count_ids(self, id_N: np.ndarray, fates: _Fates) -> None:
        """Add each token to the row of its id. Of the many ids most do not occur, so those that do are numbered."""
        if not len(id_N):
            return
        occurs = np.zeros(int(id_N.max()) + 1, dtype=bool)
        occurs[id_N] = True
        ids = np.flatnonzero(occurs)
        number = np.empty(len(occurs), dtype=np.int64)
        number[ids] = np.arange(len(ids))
        found = _Table(len(ids))
        found.count(number[id_N], fates)
        if len(occurs) > len(self.sums):
            grown = self + _Table(len(occurs))
            self.flags, self.sums = grown.flags, grown.sums
        self.flags[ids] += found.flags
        self.sums[ids] += found.sums

    def used(self) -> int:
        """Rows up to the last one with tokens."""
        return int(np.flatnonzero(self.flags.any(axis=1)).max(initial=-1)) + 1

    def rows(self, merged: Sequence[tuple[int, int]] | None = None) -> list[dict[str, Any]]:
        """The rows as JSON. `merged`: first and end of the rows that make up each."""
        ranges = [(i, i + 1) for i in range(len(self.sums))] if merged is None else merged
        out = []
        for first, end in ranges:
            counts = self.flags[first:end].sum(axis=0) @ _OF_FLAGS
            gradient, removed = self.sums[first:end].sum(axis=0).tolist()
            row = dict(zip(_COUNTS, counts.tolist(), strict=True))
            out.append({**row, "gradient": _short(gradient), "removed": _short(removed)})
        return out


class RunCensus:
    """The census of many steps of a run that may grow: what was counted is kept, and only what is new is read.

    Several threads may use it at once; they wait for each other.

    Args:
        bins: those of the run, from `bins_for`.
        update: index of the update within the batch; None for all of them.
        rows_at_most: tokens that are read. Where there are more, every second step is read, or every fourth, and so on,
            at least one.
    """

    def __init__(
        self, reader: TraceReader, bins: Bins, update: int | None = None, rows_at_most: int = ROWS_AT_MOST
    ) -> None:
        self._reader, self._bins, self._update, self._rows_at_most = reader, bins, update, rows_at_most
        self._lock = threading.Lock()
        self._counted: dict[int, Marker] = {}
        self._total = Census(bins)

    def of(self, steps: Sequence[int]) -> dict[str, Any]:
        """The census of these complete steps, in order, as `census` gives it.

        Raises:
            InputError: a step is not there, or there is none with such an update.
            RunFailed: no step could be read, since files are damaged.
        """
        with self._lock:
            return self._of(steps)

    def _of(self, steps: Sequence[int]) -> dict[str, Any]:
        markers = {step: self._reader.marker(step) for step in steps}
        costs = {step: _rows_to_read(marker, self._update) for step, marker in markers.items()}
        asked = [step for step, cost in costs.items() if cost > 0]
        if not asked:
            what = "complete step" if self._update is None else f"step with an update {self._update}"
            raise InputError(f"{self._reader.folder} has no {what} to show")
        chosen = _steps_to_read(asked, costs, self._rows_at_most)
        if any(step not in chosen or markers[step] != marker for step, marker in self._counted.items()):
            # Some are gone or were made anew, or there are so many now that fewer are read.
            self._counted, self._total = {}, Census(self._bins)
        failures = []
        for step in chosen:
            if step in self._counted:
                continue
            try:
                self._total += _census_of_step(self._reader, step, self._update, self._bins)
                self._counted[step] = markers[step]
            except RunFailed as failure:
                failures.append(failure)
        if not self._counted:
            raise failures[-1]
        few = f"{len(chosen):,} of {len(asked):,} steps, evenly spaced" if len(chosen) < len(asked) else None
        notes = [str(failure) for failure in failures]
        return {"steps": [asked[0], asked[-1]], "sampled": few, "notes": notes, **self._total.as_dict()}


def census(
    reader: TraceReader, steps: Sequence[int] | None = None, update: int | None = None, bins: Bins | None = None
) -> dict[str, Any]:
    """The census of some steps as JSON: counts of tokens, and sums of f·|w0|·(1-p) and of what the rule removed of it.

    Args:
        steps: complete steps; None for all of the trace, or for so many of them as hold ROWS_AT_MOST tokens.
        update: index of the update within the batch; None for all of them. Steps that have no such update are left out.
        bins: those of the run, from `bins_for`; None to choose them here.

    Returns:
        tokens, signal (A ≠ 0), stopped, outside (the band): counts. gradient, removed: sums, of finite tokens.
        masked: tokens that took no part and count nowhere else.
        unscored: how many of `tokens` were never scored; they have no signal, and of the tables below they are in
            by_position, by_reward and by_token alone.
        not_finite: how many of `tokens` have NaN or infinity; they are in no table below.
        steps: the first and the last. sampled: which of them were read, in words, or None. notes: what was not read.
        map: sparse cells [log-ratio bin, advantage bin, region, tokens, stopped, removed]; the outermost bins take all
            beyond.
        ratio: tokens by log-ratio for each region; noise: how far apart π_old and π_sampler are, which are two
            evaluations of the same weights (None where the engine gave no log-probs, or none was scored).
        by_position (in the completion), by_probability (π_old of the token), by_reward (mean of its group): rows.
        by_token: a row for each of the ids that lost most gradient.

    Raises:
        InputError: there is no such step or update.
        RunFailed: no step could be read, since files are damaged.
    """
    chosen = reader.steps() if steps is None else sorted(steps)
    return RunCensus(reader, bins or bins_for(reader), update).of(chosen)


def _census_of_step(reader: TraceReader, step: int, update: int | None, bins: Bins) -> Census:
    found = Census(bins)
    rewards = group_rewards(reader, step)
    for index in reader.updates(step) if update is None else [update]:
        found.count(read_tokens(reader, step, index, _COLUMNS), rewards)
    return found


def _steps_to_read(steps: list[int], costs: Mapping[int, int], rows_at_most: int) -> list[int]:
    """All steps, or as many of them, evenly spaced, as cost no more than that.

    The distances are powers of two, so that a run which grows keeps those that it has until there are twice as many.
    """
    distance, chosen = 1, steps
    while len(chosen) > 1 and sum(costs[step] for step in chosen) > rows_at_most:
        distance *= 2
        chosen = steps[distance // 2 :: distance]
    return chosen


def _rows_to_read(marker: Marker, update: int | None) -> int:
    """Tokens of a step, and what opening its files costs in tokens; 0 where it has no such update."""
    rows = 0
    for name, facts in marker.files.items():
        number = update_number(name)
        if number is not None and update in (None, number):
            rows += facts["rows"] + _ROWS_A_FILE_COSTS
    return rows


def _short(x: float) -> float:
    """Six digits: what is shown, at half the size."""
    return float(f"{x:.6g}")
