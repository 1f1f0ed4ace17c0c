"""Bins have zero at a centre, show the rule's bounds, keep round edges, and give every number a place.

Run: pytest tests/lens/test_bins.py
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinghai.lens import bins as module
from dinghai.lens.bins import (
    FINE_POSITION_EDGES,
    POSITION_ROWS,
    PROBABILITY_EDGES,
    REWARD_BINS,
    Axis,
    Bins,
    bins_for,
    evenly_spaced,
    place_position,
    place_probability,
    place_reward,
    position_rows,
    reward_edges,
    round_up,
)


class NoTrace:
    """A reader of a trace without steps."""

    def steps(self) -> list[int]:
        return []


def facts(*bounds: tuple[float, str, str]) -> dict[str, Any]:
    return {"boundaries": [{"log_ratio": x, "below": below, "above": above} for x, below, above in bounds]}


@given(st.floats(1e-4, 1e3), st.sampled_from([1, 3, 41, 121]), st.floats(-2e3, 2e3, width=32))
def test_a_number_lies_between_the_edges_of_its_bin(half_width: float, count: int, x: float) -> None:
    axis = Axis(half_width, count)
    (place,) = axis.place(np.array([x], dtype=np.float32))
    edges, slack = axis.edges, 1e-5 * half_width
    assert 0 <= place < count
    assert place == 0 or edges[place] - slack <= x
    assert place == count - 1 or x <= edges[place + 1] + slack


def test_zero_is_the_centre_of_a_bin_and_the_largest_numbers_have_one() -> None:
    axis = Axis(2.0, 41)
    width = 4.0 / 41
    x = np.array([0, 0.49 * width, -0.49 * width, 0.51 * width, 3e38, -3e38], dtype=np.float32)
    assert axis.place(x).tolist() == [20, 20, 20, 21, 40, 0]
    assert axis.edges[20] == pytest.approx(-axis.edges[21]) == pytest.approx(-width / 2)
    assert (axis.edges[0], axis.edges[-1]) == (-2.0, 2.0)


@given(st.floats(1e-12, 1e12))
def test_round_numbers_are_just_above(x: float) -> None:
    assert x * (1 - 1e-8) <= round_up(x) <= 1.5 * x
    assert round_up(round_up(x)) == round_up(x)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_rewards_lie_in_few_bins_with_round_edges(rewards: list[float]) -> None:
    edges = reward_edges(rewards)
    assert 2 <= len(edges) <= REWARD_BINS + 1
    assert list(edges) == sorted(set(edges))
    assert edges[0] <= min(rewards) + 1e-6
    assert edges[-1] >= max(rewards) - 1e-6
    places = place_reward(np.array(rewards), edges)
    for reward, place in zip(rewards, places, strict=True):
        assert edges[place] - 1e-6 <= reward <= edges[place + 1] + 1e-6


def test_rewards_of_zero_to_one_have_a_bin_for_each_tenth() -> None:
    edges = reward_edges([0.0, 0.625, 1.0])
    assert edges == tuple(i / 10 for i in range(11))
    assert place_reward(np.array([0.0, 0.1, 0.3, 0.7, 1.0, 7.0, -7.0]), edges).tolist() == [0, 1, 3, 7, 9, 9, 0]


def test_a_reward_that_is_always_the_same_has_one_bin() -> None:
    assert reward_edges([0.0, 0.0]) == (-0.05, 0.05)
    low, high = reward_edges([-3.0])
    assert low < -3 < high


@given(st.floats(-60, 0, width=32))
def test_probabilities_lie_between_their_edges(logp: float) -> None:
    (place,) = place_probability(np.array([logp], dtype=np.float32))
    p = math.exp(logp)
    assert PROBABILITY_EDGES[place] <= p * (1 + 1e-6)
    assert place == len(PROBABILITY_EDGES) - 2 or p <= PROBABILITY_EDGES[place + 1] * (1 + 1e-6)


@given(st.integers(0, 2**31 - 1))
def test_positions_lie_between_their_edges(position: int) -> None:
    (place,) = place_position(np.array([position], dtype=np.int32))
    assert FINE_POSITION_EDGES[place] <= position
    assert place == len(FINE_POSITION_EDGES) - 2 or position < FINE_POSITION_EDGES[place + 1]


def test_positions_are_exact_up_to_32_and_then_grow() -> None:
    assert FINE_POSITION_EDGES[:33] == list(range(33))
    assert FINE_POSITION_EDGES[32::4][:5] == [32, 64, 128, 256, 512]
    steps = np.diff(FINE_POSITION_EDGES[32:])
    assert (steps[1:] >= steps[:-1]).all()


@pytest.mark.parametrize("used", range(len(FINE_POSITION_EDGES)))
def test_rows_of_positions_are_few_and_leave_nothing_out(used: int) -> None:
    rows = position_rows(used)
    assert len(rows) <= POSITION_ROWS
    assert [first for first, _ in rows] == [0, *(end for _, end in rows[:-1])][: len(rows)]
    assert used <= (rows[-1][1] if rows else 0) < len(FINE_POSITION_EDGES)


def test_rows_of_a_growing_run_are_made_of_those_that_it_had() -> None:
    before: set[int] = set()
    for used in range(33, len(FINE_POSITION_EDGES)):
        ends = {end for _, end in position_rows(used)}
        assert {end for end in ends if end < used - 1} <= before | set(range(33)) or not before
        before = ends


def test_the_bounds_of_the_band_set_the_width_and_the_dual_clip_does_not() -> None:
    grpo = facts(
        (math.log(0.8), "forgotten", "inside"),
        (math.log(1.2), "inside", "overshoot"),
        (math.log(3.0), "relapse", "dual"),
    )
    assert bins_for(NoTrace(), grpo) == Bins.of(1.2, 1.0, (-0.05, 0.05))
    gspo = facts((-3e-4, "forgotten", "inside"), (4e-4, "inside", "overshoot"))
    assert bins_for(NoTrace(), gspo).ratio.half_width == 0.002
    without_end = facts((math.log(5), "inside", "overshoot"), (math.inf, "inside", "overshoot"))
    assert bins_for(NoTrace(), without_end).ratio.half_width == 4.0  # 2 nats beyond a wide bound, not 5 times as wide


@pytest.mark.parametrize("nothing", [None, {"boundaries": []}, facts((1.0, "relapse", "dual"))])
def test_without_bounds_and_steps_there_still_are_bins(nothing: Any) -> None:
    assert bins_for(NoTrace(), nothing).ratio.half_width == module._LEAST_HALF_WIDTH


@given(st.integers(1, 200), st.integers(1, 250))
def test_evenly_spaced_steps(total: int, count: int) -> None:
    steps = list(range(10, 10 + total))
    chosen = evenly_spaced(steps, count)
    assert len(chosen) == min(total, count)
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == steps[-1]
    assert count == 1 or chosen[0] == steps[0]
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
