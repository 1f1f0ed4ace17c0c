"""What other bounds and other rules make of the tokens of a prompt, one by one, as the token view shows them.

Shapes: N tokens of the prompts asked for, over all their updates; V values of a bound.

Many prompts are replayed together: what costs time is each bound and each rule, hardly the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.lens.completions import group as completions_of
from dinghai.lens.replay import Minibatch, joined, recorded_objective
from dinghai.lens.replay_candidates import Candidate, other_rules
from dinghai.lens.replay_grid import is_below, with_bounds
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

Json = dict[str, Any]

DIGITS = 7  # of a sum: cosines keep six


def replay_group(
    run_folder: Path, step: int, group: int, update: int, page: Json | None, shown: Json | None = None
) -> Json:
    """What other bounds and rules make of the tokens of one prompt in one update: see `replay_groups`.

    Args:
        page: what `replay_page` gave. shown: the prompt as `lens.completions.group` gives it; None: it is asked.

    Raises:
        InputError: there is no such step, group or update.
        RunFailed: a file is damaged.
    """
    reader = TraceReader(Path(run_folder) / "trace")
    shown = completions_of(reader, step, group) if shown is None else shown
    return replay_groups(run_folder, [(shown, update)], page)[0]


def replay_groups(
    run_folder: Path,
    shown: Sequence[tuple[Json, int]],
    page: Json | None,
    candidates: Sequence[Candidate] | None = None,
) -> list[Json]:
    """What other bounds and rules make of the tokens of some prompts, each in one update.

    Args:
        shown: prompts as `lens.completions.group` gives them, with the index of an update.
        page: what `replay_page` gave: the values of the bounds are its.
        candidates: those that the page was made with.

    Returns:
        For each of `shown` its tokens, completion after completion, those that the update took:
        samples: [[id, tokens], …], how many of each.
        grid: None where the bounds are no sliders, or do not act apart. Else for each token `side`: the bound that
            concerns it, -1 the lower, 1 the upper, 0 neither; and `kept_from`: the place of the first value of that
            bound from which on it is not stopped. None: it is stopped at all values, or at none.
        rules: by the candidate's key `region` and `effect`, indices in REGIONS and EFFECTS, and `weight`, each a list.

    Raises:
        InputError: there is no such step or update.
        RunFailed: a file is damaged.
    """
    reader = TraceReader(Path(run_folder) / "trace")
    own = recorded_objective(run_folder)
    pieces = _pieces(reader, shown)
    together = joined([piece.mine for piece in pieces]) if pieces else None
    grid = page["grid"] if page else None
    found: list[Json] = [{"samples": piece.samples, "grid": None, "rules": {}} for piece in pieces]
    if together is None or not len(together):
        return found
    if grid and grid["separable"]:
        side_N, kept_N = _sides(own, grid, together)
        for one, piece, rows in zip(found, pieces, _slices(pieces), strict=True):
            kept = [None if place < 0 else place for place in kept_N[rows][piece.shown].tolist()]
            one["grid"] = {"side": side_N[rows][piece.shown].tolist(), "kept_from": kept}
    for candidate in other_rules(own) if candidates is None else candidates:
        for one, columns in zip(found, _decided(candidate, pieces, together), strict=True):
            one["rules"][candidate.key] = columns
    return found


@dataclass(frozen=True)
class _Piece:
    """The tokens of one prompt in one update."""

    minibatch: Tokens  # all that the update took
    rows: np.ndarray  # where those of the prompt lie in it, in the order in which they are shown
    shown: np.ndarray  # [len(rows)] bool: not beyond the end of what is shown of a completion
    samples: list[list[int]]  # [id, tokens shown]

    @property
    def mine(self) -> Tokens:
        return self.minibatch.rows(self.rows)


def _pieces(reader: TraceReader, shown: Sequence[tuple[Json, int]]) -> list[_Piece]:
    read: dict[tuple[int, int], Tokens] = {}
    pieces = []
    for prompt, update in shown:
        place = (prompt["step"], update)
        if place not in read:
            read[place] = read_tokens(reader, *place)
        tokens = read[place]
        taken = [[one["id"], len(one["token"])] for one in prompt["samples"] if str(update) in one["updates"]]
        rows = [np.flatnonzero(tokens.sample == sample) for sample, _ in taken]
        rows = [rows_N[np.argsort(tokens.position[rows_N], kind="stable")] for rows_N in rows]
        seen = [np.arange(len(rows_N)) < count for rows_N, (_, count) in zip(rows, taken, strict=True)]
        pieces.append(_Piece(tokens, _together(rows, np.int64), _together(seen, np.bool_), taken))
    return pieces


def _together(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _slices(pieces: Sequence[_Piece]) -> list[slice]:
    """Where each piece's tokens lie among those of all."""
    ends = np.cumsum([0, *(len(piece.rows) for piece in pieces)]).tolist()
    return [slice(*ends[place : place + 2]) for place in range(len(pieces))]


def _decided(candidate: Candidate, pieces: Sequence[_Piece], together: Tokens) -> list[Json]:
    """Region, effect and weight of each piece's tokens."""
    if candidate.looks_at_minibatch:
        whole = {id(piece.minibatch): piece.minibatch for piece in pieces}
        decided = {key: Minibatch(tokens).replay(candidate.policy_loss).decided for key, tokens in whole.items()}
        parts = [decided[id(piece.minibatch)].rows(piece.rows) for piece in pieces]
    else:
        replayed = Minibatch(together).replay(candidate.policy_loss)
        parts = [replayed.decided.rows(rows) for rows in _slices(pieces)]
    return [
        {
            "region": tokens.region[piece.shown].tolist(),
            "effect": tokens.effect[piece.shown].tolist(),
            "weight": [short(weight) for weight in tokens.weight[piece.shown].tolist()],
        }
        for piece, tokens in zip(pieces, parts, strict=True)
    ]


def _sides(own: PolicyLoss, grid: Json, tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Which bound concerns each token, and from which of its values on it is not stopped; -1: no value changes it."""
    minibatch = Minibatch(tokens)
    low, high = grid["low"], grid["high"]
    stopped = []
    for place in range(max(len(low), len(high))):
        replayed = minibatch.replay(with_bounds(own, low[min(place, len(low) - 1)], high[min(place, len(high) - 1)]))
        stopped.append(replayed.stopped_N)
    stopped_VN, below_N = np.stack(stopped), is_below(replayed)
    kept_N = np.where(below_N, _kept_from(stopped_VN[: len(low)]), _kept_from(stopped_VN[: len(high)]))
    return np.where(tokens.signal, np.where(below_N, -1, 1), 0), kept_N


def _kept_from(stopped_VN: np.ndarray) -> np.ndarray:
    """The place behind the last value at which a token is stopped; -1 where that is none, or the last of all."""
    values = len(stopped_VN)
    behind_N = values - np.argmax(stopped_VN[::-1], axis=0)
    return np.where(stopped_VN.any(axis=0) & (behind_N < values), behind_N, -1)


def short(value: float) -> float | int | None:
    """A number as the pages get it: whole, or of seven significant digits; None for what is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.{DIGITS}g}")
