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

from dinghai.lens.regions import REGIONS
from dinghai.lens.replay import Minibatch, Replayed, sums_of
from dinghai.lens.replay_candidates import OFFSET, Bounds, Mark, bounds_of, marks_for
from dinghai.lens.tokens import Tokens
from dinghai.objective import PolicyLoss
from dinghai.objective.parameters import ParameterInfo

VALUES = 21  # log-spaced ones of each bound; the run's own and the papers' come on top
VALUES_OF_BOTH = 10  # where every pair has to be replayed
_PROBED = 4.0 ** np.arange(-9, 5)  # bounds in units of the run's own, tried where log-ratios do not tell their unit
_BEGINS = 0.5  # the narrowest value has about so many of the tokens that moved outside; the widest has none
_LEAST = 1e-6  # nats; what differs less is the rounding of float32

_BELOW, _ABOVE = (np.array([REGIONS.index(name) for name in names]) for names in (
    ("forgotten", "escaped"), ("overshoot", "relapse", "dual")))  # fmt: skip


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
    marks = [mark for mark in marks_for(own) if bounds.low.admits(mark.low) and bounds.high.admits(mark.high)]
    low_ends, high_ends = _ends(own, bounds, minibatch)
    low = _values(bounds.low, [bounds.low_value, *(mark.low for mark in marks)], low_ends)
    high = _values(bounds.high, [bounds.high_value, *(mark.high for mark in marks)], high_ends)
    grid = Grid(bounds, low, high, marks, separable=True)
    if _acts_apart(own, grid, minibatch):
        return grid
    low, high = _thinned(low, bounds.low_value), _thinned(high, bounds.high_value)
    return Grid(bounds, low, high, marks, separable=False)


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


def _ends(own: PolicyLoss, bounds: Bounds, minibatch: Minibatch) -> tuple[tuple[float, float], tuple[float, float]]:
    """The narrowest and the widest value worth showing of the lower bound and of the upper; 0, 0: nothing moved."""
    if bounds.low.unit == bounds.high.unit == OFFSET:
        log_ratio_N = minibatch.replay(own).log_ratio_N.astype(np.float64)
        moved_N = log_ratio_N[minibatch.tokens.signal & (np.abs(log_ratio_N) > _LEAST)]
        below, above = -np.expm1(moved_N[moved_N < 0]), np.expm1(moved_N[moved_N > 0])
        return _quantiles(below), _quantiles(above)
    outside = []
    for unit in _PROBED:
        low, high = (min(unit * v, info.at_most) for v, info in zip(bounds.values, bounds.infos, strict=True))
        region_N = minibatch.replay(with_bounds(own, low, high)).region_N
        outside.append([np.isin(region_N, regions).sum() for regions in (_BELOW, _ABOVE)])
    below_V, above_V = np.array(outside).T
    return _probed(below_V, bounds.low_value), _probed(above_V, bounds.high_value)


def _quantiles(distance_N: np.ndarray) -> tuple[float, float]:
    finite_N = distance_N[np.isfinite(distance_N)]
    return (float(np.quantile(finite_N, 1 - _BEGINS)), float(finite_N.max())) if len(finite_N) else (0.0, 0.0)


def _probed(outside_V: np.ndarray, own: float) -> tuple[float, float]:
    """From how many tokens are outside at each of the values tried."""
    if not outside_V.any():
        return 0.0, 0.0
    narrow = np.flatnonzero(outside_V >= _BEGINS * outside_V[0])[-1]
    empty = np.flatnonzero(outside_V == 0)
    wide = empty[0] if len(empty) else len(_PROBED) - 1
    return float(_PROBED[narrow] * own), float(_PROBED[wide] * own)


def _values(info: ParameterInfo, fixed: Sequence[float], ends: tuple[float, float]) -> list[float]:
    """Log-spaced values between the ends, with those that have to be there, the run's own first of them."""
    narrow, wide = ends
    if fixed[0] > 0 and narrow > 0:
        narrow = min(narrow, fixed[0] / 4)
    spaced = np.geomspace(narrow, max(1.05 * wide, 2 * narrow), VALUES).tolist() if narrow > 0 else []
    found = {*fixed, *(float(f"{value:.3g}") for value in spaced)}
    return sorted(value for value in found if info.admits(value))


def _thinned(values: list[float], own: float) -> list[float]:
    """Some of the values, the ends and the run's own among them."""
    places = np.unique(np.linspace(0, len(values) - 1, VALUES_OF_BOTH).round().astype(int))
    return sorted({values[place] for place in places} | {own})
