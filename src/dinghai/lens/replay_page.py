"""A run's replay as the pages read it: bounds as sliders, other rules beside the run's own, token for token.

Shapes: N tokens, U updates of a batch, P = U parts into which tokens fall, K sums (`lens.replay.KEYS`).

A page answers at once because all that it shows follows from sums, which add up over updates and over the two sides of
the band. They are of a few steps only, so that they cost neither time nor room.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.lens.bins import evenly_spaced
from dinghai.lens.replay import (
    FIRST_ORDER,
    KEYS,
    own_sums_of,
    recorded_objective,
    sums_of,
)
from dinghai.lens.replay_candidates import Candidate, bounds_of, other_rules, own_candidate
from dinghai.lens.replay_chunk import Chunk, rows_of
from dinghai.lens.replay_grid import Grid, grid_for, pair_sums, side_sums
from dinghai.lens.replay_groups import replay_group, replay_groups, short
from dinghai.lens.tokens import Tokens
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

TOKENS_READ = 60_000  # rows of the trace, more or less
EXAMPLES = 6  # of tokens on which two rules differ

Json = dict[str, Any]

__all__ = ["replay_group", "replay_groups", "replay_page"]


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
    steps = evenly_spaced(recorded, max(1, TOKENS_READ // max(rows_of(reader, recorded[0]), 1)))
    chunk = Chunk(reader, [(step, update) for step in steps for update in reader.updates(step)])
    updates = sorted({update for _, update in chunk.places})
    tokens, part_N, parts = chunk.tokens, chunk.update_place(updates), len(updates)
    own_replayed = chunk.replay(own)
    grid = grid_for(own, tokens)
    bounds = bounds_of(own)
    return {
        "about": {
            "steps": steps,
            "recorded_steps": len(recorded),
            "updates": updates,
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
        "rules": [_rule(one, chunk, part_N, parts) for one in (other_rules(own) if candidates is None else candidates)],
    }


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


def _rule(one: Candidate, chunk: Chunk, part_N: np.ndarray, parts: int) -> Json:
    replayed = chunk.replay(one.policy_loss)
    places = ("step", "group", "sample", "update", "position")
    return {
        "key": one.key,
        "label": one.label,
        "rule": one.rule,
        "sums": _rounded(sums_of(replayed, part_N, parts)),
        "disagree": [{name: getattr(at, name) for name in places} for at in chunk.examples(replayed, EXAMPLES)],
    }


def _rounded(sums: np.ndarray) -> Any:
    """The numbers of sums, in their shape, as lists."""
    return [_rounded(part) for part in sums] if sums.ndim > 1 else [short(value) for value in sums.tolist()]
