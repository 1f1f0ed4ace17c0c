"""A run's replay as the pages read it: bounds as sliders, other rules beside the run's own, token for token.

Shapes: N tokens, U updates of a batch, P = U parts into which tokens fall, K sums (`lens.replay.KEYS`).

A page answers at once because all that it shows follows from sums, which add up over updates and over the two sides of
the band. They are of a few steps only, so that they cost neither time nor room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.lens.bins import evenly_spaced
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
from dinghai.lens.replay_grid import Grid, grid_for, pair_sums, side_sums
from dinghai.lens.replay_groups import replay_group, replay_groups, short
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

TOKENS_READ = 60_000  # rows of the trace, more or less
EXAMPLES = 6  # of tokens on which two rules differ

Json = dict[str, Any]

__all__ = ["replay_group", "replay_groups", "replay_page"]


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


def _rounded(sums: np.ndarray) -> Any:
    """The numbers of sums, in their shape, as lists."""
    return [_rounded(part) for part in sums] if sums.ndim > 1 else [short(value) for value in sums.tolist()]
