"""Where the bins of a census lie. They are chosen once a run, so that its steps add up and their pictures compare.

Shapes: N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinghai.errors import RunFailed
from dinghai.lens.rewards import group_rewards
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader

MAP_LOG_RATIO_BINS, MAP_ADVANTAGE_BINS, RATIO_BINS = 61, 41, 121  # odd, so that 0 is the centre of a bin
REWARD_BINS = 10  # at most
POSITION_ROWS = 44  # at most
PROBABILITY_EDGES = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99, 0.999, 1.0)

_STEPS_LOOKED_AT = 5  # to choose the bins: the first, the last and some between
_BOUNDS_SHOWN = 5.0  # half-width of the log-ratios, in units of the widest bound
_BEYOND_BOUND = 2.0  # nats beyond that bound, at most: hardly a token goes farther than a cap and a factor of 7
_QUANTILE = 0.999  # of |log r| that is shown where a rule has no bounds
_LEAST_HALF_WIDTH = 1e-4  # nats; what differs less than this is the rounding of float32
_EXACT_POSITIONS, _LAST_POSITION, _BINS_AN_OCTAVE = 32, 2**17, 4
_NICE = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """`count` equal bins from -half_width to half_width. The outermost take everything beyond."""

    half_width: float
    count: int

    @property
    def edges(self) -> list[float]:
        return [float(f"{edge:.9g}") for edge in np.linspace(-self.half_width, self.half_width, self.count + 1)]

    def place(self, x_N: np.ndarray) -> np.ndarray:
        """The bin of each number, none of which is NaN: [N] float32 -> [N] int64."""
        with np.errstate(over="ignore"):  # infinity is beyond the last bin too
            scaled_N = x_N * np.float32(self.count / (2 * self.half_width)) + np.float32(self.count / 2)
        # Clipped before it becomes a whole number, since one that is too large has none.
        return np.clip(scaled_N, 0, self.count - 1, out=scaled_N).astype(np.int64)


@dataclass(frozen=True)
class Bins:
    """Edges of everything that a census counts by. Two censuses add up only if these are equal."""

    map_log_ratio: Axis
    map_advantage: Axis
    ratio: Axis  # of log-ratios, in nats as above
    reward_edges: tuple[float, ...]  # of the mean reward of a group, ascending

    @classmethod
    def of(cls, log_ratio: float, advantage: float, reward_edges: tuple[float, ...]) -> Bins:
        """The bins for half-widths of the log-ratios (nats) and the advantages."""
        return cls(
            Axis(log_ratio, MAP_LOG_RATIO_BINS),
            Axis(advantage, MAP_ADVANTAGE_BINS),
            Axis(log_ratio, RATIO_BINS),
            reward_edges,
        )


def bins_for(reader: TraceReader, rule_facts: Mapping[str, Any] | None = None) -> Bins:
    """The bins of a run, from its rule's bounds and from a few of its recorded steps. Damaged steps are passed over.

    Args:
        rule_facts: as `dinghai.lens.rule_facts.load_rule_facts` gives them; None where the run has none.

    Raises:
        InputError: a newer version of Dinghai wrote the trace.
    """
    bound = _widest_bound(rule_facts)
    log_ratio, advantage = 0.0, 0.0
    rewards: list[float] = []
    for step in evenly_spaced(reader.steps(), _STEPS_LOOKED_AT):
        try:
            found = group_rewards(reader, step).reward
            last = reader.updates(step)[-1:]  # in which the ratios have gone furthest
            tokens = [read_tokens(reader, step, update, ["advantage", "log_ratio"]) for update in last]
        except RunFailed:  # said by whatever reads the step in order to show it
            continue
        rewards += found[np.isfinite(found)].tolist()
        for of_update in tokens:
            advantage = max(advantage, _largest(of_update.advantage, 1.0))
            log_ratio = max(log_ratio, _largest(of_update.log_ratio, _QUANTILE))
    shown = min(_BOUNDS_SHOWN * bound, bound + _BEYOND_BOUND)
    half_width = shown if bound else max(log_ratio, _LEAST_HALF_WIDTH)
    return Bins.of(round_up(half_width), round_up(advantage or 1.0), reward_edges(rewards or [0.0]))


def evenly_spaced(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, the first and the last among them."""
    if count >= len(steps):
        return list(steps)
    if count == 1:
        return [steps[-1]]
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def round_up(x: float) -> float:
    """The next number of the series 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10 times a power of ten, for x > 0."""
    power = 10.0 ** math.floor(math.log10(x))
    return float(f"{power * next(nice for nice in _NICE if nice * power >= x * (1 - 1e-9)):.6g}")


def reward_edges(rewards: Sequence[float]) -> tuple[float, ...]:
    """Edges at round numbers of at most REWARD_BINS equal bins that hold all the rewards."""
    low, high = min(rewards), max(rewards)
    if low == high:
        step = round_up(abs(low) / 10) if low else 0.1
        return (low - step / 2, low + step / 2)
    step = round_up((high - low) / REWARD_BINS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last - first > REWARD_BINS:  # the round numbers do not meet the ends
        step = round_up(step * 1.01)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))


def place_reward(reward: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """The bin of each finite reward; the outermost take everything beyond."""
    return np.clip(np.searchsorted(edges, reward + 1e-9, side="right") - 1, 0, len(edges) - 2)


def place_probability(logp_N: np.ndarray) -> np.ndarray:
    """The bin of each probability in PROBABILITY_EDGES: [N] float32 log-probs -> [N] int64."""
    place_N = np.zeros(len(logp_N), dtype=np.uint8)
    for edge in PROBABILITY_EDGES[1:-1]:  # a few comparisons of all are faster than a search for each
        place_N += logp_N >= np.float32(math.log(edge))
    return place_N.astype(np.int64)


def _fine_position_edges() -> list[int]:
    """Each position by itself, then bins that grow with the position, four each time that it doubles."""
    octaves = round(math.log2(_LAST_POSITION / _EXACT_POSITIONS))
    growing = [round(_EXACT_POSITIONS * 2 ** (i / _BINS_AN_OCTAVE)) for i in range(1, octaves * _BINS_AN_OCTAVE + 1)]
    return [*range(_EXACT_POSITIONS + 1), *growing]


FINE_POSITION_EDGES = _fine_position_edges()
_PLACE_OF_POSITION = np.searchsorted(FINE_POSITION_EDGES[1:-1], np.arange(_LAST_POSITION), side="right")


def place_position(position_N: np.ndarray) -> np.ndarray:
    """The bin of each position in FINE_POSITION_EDGES, the last of which takes everything beyond: [N] -> [N] int64."""
    return _PLACE_OF_POSITION[np.minimum(position_N, _LAST_POSITION - 1)]


def position_rows(used: int) -> list[tuple[int, int]]:
    """How the first `used` fine bins of positions make at most POSITION_ROWS rows: the first bin of each, and its end.

    Rows of a longer answer are halves, quarters, … of those of a shorter one, so that a growing run keeps its edges.
    """
    exact = min(used, _EXACT_POSITIONS)
    rows = [(i, i + 1) for i in range(exact)]
    merged = 1
    while exact + math.ceil((used - exact) / merged) > POSITION_ROWS:
        merged *= 2
    return rows + [(i, min(i + merged, len(FINE_POSITION_EDGES) - 1)) for i in range(exact, used, merged)]


def _widest_bound(rule_facts: Mapping[str, Any] | None) -> float:
    """The largest |log ratio| at which the rule's band ends, in nats; 0 where it has no such place.

    The bound of the dual clip lies between two regions outside the band, and is not meant.
    """
    boundaries = (rule_facts or {}).get("boundaries") or []
    ends = [abs(float(b["log_ratio"])) for b in boundaries if "inside" in (b["below"], b["above"])]
    return max((end for end in ends if math.isfinite(end)), default=0.0)


def _largest(x_N: np.ndarray, quantile: float) -> float:
    """The quantile of |x| over the finite numbers; 0 where there are none."""
    size_N = np.abs(x_N[np.isfinite(x_N)])
    if not len(size_N):
        return 0.0
    rank = min(len(size_N) - 1, math.floor(quantile * len(size_N)))
    return float(np.partition(size_N, rank)[rank])
