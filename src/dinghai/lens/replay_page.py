"""A run's replay as the pages read it: bounds as sliders, other rules beside the run's own, token for token.

Shapes: N tokens, U updates of a batch, P = U parts into which tokens fall, K sums (`lens.replay.KEYS`).

A page answers at once because all that it shows follows from sums, which add up over updates and over the two sides of
the band. They are of a few steps only, so that they cost neither time nor room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.lens.bins import evenly_spaced
from dinghai.lens.completions import group as group_of
from dinghai.lens.replay import (
    FIRST_ORDER,
    KEYS,
    Minibatch,
    Replayed,
    joined,
    own_sums_of,
    recorded_objective,
    sums_of,
)
from dinghai.lens.replay_candidates import Candidate, bounds_of, other_rules, own_candidate
from dinghai.lens.replay_grid import Grid, grid_for, is_below, pair_sums, side_sums, with_bounds
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

TOKENS_READ = 60_000  # rows of the trace, more or less
EXAMPLES = 6  # of tokens on which two rules differ
DIGITS = 7  # of a sum: cosines keep six

Json = dict[str, Any]


@dataclass(frozen=True)
class _Read:
    """The recorded tokens that a page is made from."""

    minibatches: list[Tokens]
    place: list[tuple[int, int]]  # (step, update) of each

    @property
    def updates(self) -> list[int]:
        return sorted({update for _, update in self.place})

    @property
    def steps(self) -> list[int]:
        return sorted({step for step, _ in self.place})

    @property
    def part_N(self) -> np.ndarray:
        """The place of each token's update among `updates`."""
        parts = [self.updates.index(update) for _, update in self.place]
        return np.repeat(parts, [len(tokens) for tokens in self.minibatches])


def replay_page(run_folder: Path, candidates: Sequence[Candidate] | None = None) -> Json | None:
    """The replay of a run for its page; None where nothing is recorded.

    Args:
        candidates: rules to set beside the run's own; by default those of `other_rules`.

    Raises:
        InputError: the run's settings are missing, damaged or of a rule that is not registered.
        RunFailed: a file of the trace is damaged.
    """
    reader = TraceReader(Path(run_folder) / "trace")
    recorded = reader.steps()
    if not recorded:
        return None
    own = recorded_objective(run_folder)
    read = _read(reader, recorded)
    tokens, part_N, parts = joined(read.minibatches), read.part_N, len(read.updates)
    own_replayed = _replayed(own, read)
    grid = grid_for(own, tokens)
    bounds = bounds_of(own)
    return {
        "about": {
            "steps": read.steps,
            "recorded_steps": len(recorded),
            "updates": read.updates,
            "tokens": len(tokens),
            "signal": int(tokens.signal.sum()),
            "note": FIRST_ORDER,
        },
        "own": {
            "label": own_candidate(own).label,
            "rule": own.rule.name,
            "low": bounds.low_value if bounds else None,
            "high": bounds.high_value if bounds else None,
            "unit": bounds.unit if bounds else None,
        },
        "reproduced": {"tokens": len(tokens), "equal": int(own_replayed.as_recorded_N.sum())},
        "keys": list(KEYS),
        "own_sums": _rounded(own_sums_of(own_replayed, part_N, parts)),
        "grid": _grid(own, grid, tokens, part_N, parts) if grid else None,
        "rules": [
            _rule(one, read, part_N, parts, reader) for one in (other_rules(own) if candidates is None else candidates)
        ],
    }


def replay_group(run_folder: Path, step: int, group: int, update: int, page: Json | None = None) -> Json:
    """What other bounds and rules make of the tokens of one prompt in one update.

    Tokens are in the order of `lens.completions.group`: its completions one after the other, those that the update
    took. `samples` says how many of each.

    Args:
        page: what `replay_page` gave, whose values of the bounds are used; None: it is made.

    Returns:
        samples: [[id, tokens], …]
        grid: None, or for each token `side`: the bound that concerns it, -1 the lower, 1 the upper, 0 neither; and
            `kept_from`: the place of the first value of that bound at which it is not stopped. None: it never is, or
            always.
        rules: by the candidate's key, `region` and `effect` as indices in REGIONS and EFFECTS, and `weight`.

    Raises:
        InputError: there is no such step, group or update.
        RunFailed: a file is damaged.
    """
    run_folder = Path(run_folder)
    reader = TraceReader(run_folder / "trace")
    own = recorded_objective(run_folder)
    page = replay_page(run_folder) if page is None else page
    shown = group_of(reader, step, group)["samples"]
    taken = [(one["id"], len(one["token"])) for one in shown if str(update) in one["updates"]]
    tokens = read_tokens(reader, step, update)
    rows_N = np.concatenate([_rows_of(tokens, *one) for one in taken]) if taken else np.zeros(0, dtype=np.int64)
    mine = tokens.rows(np.isin(tokens.sample, [sample for sample, _ in taken]))
    mine_N = np.concatenate([_rows_of(mine, *one) for one in taken]) if taken else rows_N
    rules = {}
    for one in other_rules(own):
        where_N, minibatch = (rows_N, tokens) if one.looks_at_minibatch else (mine_N, mine)
        replayed = Minibatch(minibatch).replay(one.policy_loss)
        rules[one.key] = {
            "region": replayed.region_N[where_N].tolist(),
            "effect": replayed.effect_N[where_N].tolist(),
            "weight": [_short(weight) for weight in replayed.weight_N[where_N].tolist()],
        }
    grid = page["grid"] if page else None
    return {
        "samples": [list(one) for one in taken],
        "grid": _sides(own, grid, mine, mine_N) if grid and grid["separable"] else None,
        "rules": rules,
    }


def _read(reader: TraceReader, recorded: Sequence[int]) -> _Read:
    """Some of the recorded steps, evenly spaced: as many as `TOKENS_READ` allows, at least one."""
    first = sum(facts["rows"] for name, facts in reader.marker(recorded[0]).files.items() if name.startswith("update"))
    steps = evenly_spaced(recorded, max(1, TOKENS_READ // max(first, 1)))
    place = [(step, update) for step in steps for update in reader.updates(step)]
    return _Read([read_tokens(reader, *one) for one in place], place)


def _replayed(policy_loss: PolicyLoss, read: _Read) -> Replayed:
    """What an objective decides on all tokens read: at once, or minibatch by minibatch where it looks at all of one."""
    if policy_loss.rule.context is None:
        return Minibatch(joined(read.minibatches)).replay(policy_loss)
    each = [Minibatch(tokens).replay(policy_loss) for tokens in read.minibatches]
    return Replayed(joined([one.tokens for one in each]), joined([one.decided for one in each]))


def _grid(own: PolicyLoss, grid: Grid, tokens: Tokens, part_N: np.ndarray, parts: int) -> Json:
    low, high = grid.own
    found: Json = {
        "low": grid.low,
        "high": grid.high,
        "own": [low, high],
        "separable": grid.separable,
        "marks": [
            {"name": mark.name, "low": mark.low, "high": mark.high, "source": mark.source} for mark in grid.marks
        ],
    }
    if not grid.separable:
        return found | {"both": _rounded(pair_sums(own, grid, tokens, part_N, parts))}
    below, above = side_sums(own, grid, tokens, part_N, parts)
    return found | {"low_sums": _rounded(below), "high_sums": _rounded(above)}


def _rule(one: Candidate, read: _Read, part_N: np.ndarray, parts: int, reader: TraceReader) -> Json:
    replayed = _replayed(one.policy_loss, read)
    return {
        "key": one.key,
        "label": one.label,
        "rule": one.rule,
        "sums": _rounded(sums_of(replayed, part_N, parts)),
        "disagree": _disagree(replayed, read, reader),
    }


def _disagree(replayed: Replayed, read: _Read, reader: TraceReader) -> list[Json]:
    """Where the tokens lie whose effects differ, those first whose gradients differ most."""
    apart_N = np.abs(replayed.signed_N - replayed.own_signed_N)
    apart_N = np.where(replayed.differ_N, np.nan_to_num(apart_N, nan=np.inf), -1.0)
    starts = np.cumsum([0, *(len(tokens) for tokens in read.minibatches)])
    found = []
    for row in np.argsort(-apart_N, kind="stable")[:EXAMPLES].tolist():
        if apart_N[row] < 0:
            break
        minibatch = int(np.searchsorted(starts, row, side="right")) - 1
        step, update = read.place[minibatch]
        tokens, here = read.minibatches[minibatch], row - int(starts[minibatch])
        sample = int(tokens.sample[here])
        samples = reader.samples(step, ["sample", "group"]).to_pydict()
        group = samples["group"][samples["sample"].index(sample)]
        place = {"step": step, "group": group, "sample": sample, "update": update}
        found.append(place | {"position": int(tokens.position[here])})
    return found


def _rows_of(tokens: Tokens, sample: int, count: int) -> np.ndarray:
    """The first rows of a sample, by position."""
    rows_N = np.flatnonzero(tokens.sample == sample)
    return rows_N[np.argsort(tokens.position[rows_N], kind="stable")][:count]


def _sides(own: PolicyLoss, grid: Json, tokens: Tokens, rows_N: np.ndarray) -> Json:
    """Which bound concerns each token, and from which of its values on the token is not stopped."""
    minibatch = Minibatch(tokens)
    low, high = grid["low"], grid["high"]
    stopped = []
    for place in range(max(len(low), len(high))):
        replayed = minibatch.replay(with_bounds(own, low[min(place, len(low) - 1)], high[min(place, len(high) - 1)]))
        stopped.append(replayed.stopped_N[rows_N])
        below_N = is_below(replayed)[rows_N]
    stopped_VN = np.stack(stopped)
    moved_N = tokens.signal[rows_N]
    side_N = np.where(moved_N, np.where(below_N, -1, 1), 0)
    kept: list[int | None] = []
    for row, below in enumerate(below_N.tolist()):
        of_bound_V = stopped_VN[: len(low) if below else len(high), row]
        last = np.flatnonzero(of_bound_V)
        first_kept = int(last[-1]) + 1 if len(last) else 0
        kept.append(first_kept if 0 < first_kept < len(of_bound_V) else None)
    return {"side": side_N.tolist(), "kept_from": kept}


def _rounded(sums: np.ndarray) -> Any:
    """To `DIGITS` significant digits, whole numbers as such; None for what is not finite."""
    return [_rounded(part) for part in sums] if sums.ndim > 1 else [_short(value) for value in sums.tolist()]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.{DIGITS}g}")
