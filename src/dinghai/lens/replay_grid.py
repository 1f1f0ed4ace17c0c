"""A rule's bounds as sliders: what each lower and each upper bound would have done to the tokens of a run.

Shapes: N tokens, L lower bounds, H upper ones, P parts into which the tokens fall, K sums (`lens.replay.KEYS`).

Where the lower bound decides about tokens with r < 1 alone and the upper one about the others, the sums of any pair of
bounds are those of the lower for the ones plus those of the upper for the others. Whether it is so, the rule is asked.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinghai.lens.replay import Minibatch, Replayed, sums_of
from dinghai.lens.replay_candidates import Bounds, Mark, bounds_of, marks_for
from dinghai.lens.tokens import Tokens
from dinghai.objective import PolicyLoss

VALUES = 21  # log-spaced ones of each bound; the run's own and the papers' come on top
VALUES_OF_BOTH = 10  # where every pair has to be replayed
_NARROWEST, _WIDEST = 1 / 30, 10.0  # in units of the run's own bound, where log-ratios do not tell
_QUANTILE = 0.5  # of |log r| where the values begin: at the widest of all they end
_LEAST = 1e-6  # nats; what differs less is the rounding of float32


@dataclass(frozen=True)
class Grid:
    """Values of both bounds, ascending, and whether they act apart."""

    bounds: Bounds
    low: list[float]
    high: list[float]
    marks: list[Mark]
    separable: bool

    @property
    def own(self) -> tuple[int, int]:
        """The places of the run's own bounds."""
        return self.low.index(self.bounds.low_value), self.high.index(self.bounds.high_value)


def grid_for(own: PolicyLoss, tokens: Tokens) -> Grid | None:
    """The grid of a rule with a lower and an upper bound, about what the tokens show; None for other rules.

    None as well for a rule that looks at the whole minibatch: `tokens` may be of several.
    """
    bounds = bounds_of(own)
    if bounds is None or own.rule.context is not None:
        return None
    minibatch = Minibatch(tokens)
    log_ratio_N = minibatch.replay(own).log_ratio_N
    moved_N = tokens.signal & (np.abs(log_ratio_N) > _LEAST)
    marks = [mark for mark in marks_for(own) if bounds.low.admits(mark.low) and bounds.high.admits(mark.high)]
    low = _values(bounds, -log_ratio_N[moved_N & (log_ratio_N < 0)], "low", [mark.low for mark in marks])
    high = _values(bounds, log_ratio_N[moved_N & (log_ratio_N > 0)], "high", [mark.high for mark in marks])
    grid = Grid(bounds, low, high, marks, separable=True)
    if _acts_apart(own, grid, minibatch):
        return grid
    return Grid(bounds, _thinned(low, bounds.low_value), _thinned(high, bounds.high_value), marks, separable=False)


def with_bounds(own: PolicyLoss, low: float, high: float) -> PolicyLoss:
    """The run's objective with other bounds."""
    bounds = bounds_of(own)
    assert bounds is not None
    other = copy.copy(own)
    other.parameters = dataclasses.replace(own.parameters, **{bounds.low_name: low, bounds.high_name: high})
    return other


def side_sums(
    own: PolicyLoss, grid: Grid, tokens: Tokens, part_N: np.ndarray, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the tokens with r < 1 at each lower bound [P, L, K], and of the others at each upper bound [P, H, K]."""
    minibatch = Minibatch(tokens)
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for place in range(max(len(grid.low), len(grid.high))):
        low, high = min(place, len(grid.low) - 1), min(place, len(grid.high) - 1)
        replayed = minibatch.replay(with_bounds(own, grid.low[low], grid.high[high]))
        sums_PK = sums_of(replayed, 2 * part_N + ~is_below(replayed), 2 * parts)
        for side, count in enumerate((len(grid.low), len(grid.high))):
            if place < count:
                columns[side].append(sums_PK[side::2])
    below, above = (np.stack(found, axis=1) for found in columns)
    return below, above


def pair_sums(own: PolicyLoss, grid: Grid, tokens: Tokens, part_N: np.ndarray, parts: int) -> np.ndarray:
    """Sums of all tokens at each pair of bounds: [P, L, H, K]."""
    minibatch = Minibatch(tokens)
    rows = [
        [sums_of(minibatch.replay(with_bounds(own, low, high)), part_N, parts) for high in grid.high]
        for low in grid.low
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def is_below(replayed: Replayed) -> np.ndarray:
    """r < 1, of the ratio that the rule looks at: [N] bool. False where it is unknown."""
    below_N: np.ndarray = replayed.log_ratio_N < 0
    return below_N


def _acts_apart(own: PolicyLoss, grid: Grid, minibatch: Minibatch) -> bool:
    """Whether, on these tokens, the lower bound changes nothing where r >= 1, and the upper one nothing where r < 1."""
    corners = {
        (low, high): minibatch.replay(with_bounds(own, grid.low[low], grid.high[high]))
        for low in (0, len(grid.low) - 1)
        for high in (0, len(grid.high) - 1)
    }
    below_N = is_below(corners[0, 0])
    for (low, high), here in corners.items():
        if not _equal(here, corners[low, 0], below_N) or not _equal(here, corners[0, high], ~below_N):
            return False
    return True


def _equal(one: Replayed, other: Replayed, where_N: np.ndarray) -> bool:
    return all(
        np.array_equal(one.decided.column(name)[where_N], other.decided.column(name)[where_N])
        for name in ("weight", "region", "effect")
    )


def _values(bounds: Bounds, distance_N: np.ndarray, side: str, more: Sequence[float]) -> list[float]:
    """Log-spaced values over the distances |log r| that tokens have, with the run's own and those of the papers."""
    info, own = (bounds.low, bounds.low_value) if side == "low" else (bounds.high, bounds.high_value)
    in_log_space = "log" in info.unit
    if len(distance_N) and (in_log_space or info.unit == "offset from 1"):
        ends = np.quantile(distance_N, [_QUANTILE, 1.0]).astype(np.float64)
        if not in_log_space:
            ends = -np.expm1(-ends) if side == "low" else np.expm1(ends)
    else:
        ends = np.array([_NARROWEST, _WIDEST]) * own
    narrow, wide = (float(end) for end in ends)
    narrow = min(narrow, own / 4)
    spaced = np.geomspace(narrow, max(wide * 1.05, 2 * narrow), VALUES) if 0 < narrow < wide < np.inf else []
    found = {own, *more, *(float(f"{value:.3g}") for value in spaced)}
    return sorted(value for value in found if info.admits(value) and np.isfinite(value))


def _thinned(values: list[float], own: float) -> list[float]:
    """Some of the values, the ends and the run's own among them."""
    places = np.unique(np.linspace(0, len(values) - 1, VALUES_OF_BOTH).round().astype(int))
    return sorted({values[place] for place in places} | {own})
