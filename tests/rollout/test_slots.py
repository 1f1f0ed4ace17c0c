"""Proves the bookkeeping of slots: every row gets a slot once, its prompt is read before it and stays until it has
left, those in use are always the first, and steps that are run by bucket cover what they have to.

Run: pytest tests/rollout/test_slots.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinghai.rollout.graphs import StepShape
from dinghai.rollout.slots import Grid, Slots


@settings(deadline=None, max_examples=150)
@given(
    prompts=st.integers(1, 9), group_size=st.integers(1, 6), capacity=st.integers(1, 20), seed=st.integers(0, 2**32 - 1)
)
def test_every_row_is_decoded_once_beside_its_prompt(prompts: int, group_size: int, capacity: int, seed: int) -> None:
    """Rows and prompts are moved as `Slots` says, and rows end at random; what lies in a slot is always its row."""
    rng = np.random.default_rng(seed)
    slots = Slots(prompts, group_size, capacity)
    in_slot, in_room = np.full(slots.capacity, -1), np.full(slots.rooms, -1)
    ended: list[int] = []
    read: list[int] = []
    alive = np.zeros(0, dtype=bool)
    for step in range(1000):
        if slots.worthwhile(int(alive.sum())) or alive.sum() < slots.used:
            moved, moved_rooms = slots.leave(alive)
            in_slot[moved.target] = in_slot[moved.source]
            in_room[moved_rooms.target] = in_room[moved_rooms.source]
            arrivals = slots.arrive(step)
            in_slot[arrivals.first_slot : slots.used] = arrivals.rows
            in_room[arrivals.rooms] = arrivals.prompts
            read += arrivals.prompts
        n = slots.used
        if n == 0:
            break
        assert n <= capacity
        assert in_slot[:n].tolist() == slots.row[:n].tolist()
        assert (in_room[slots.room[:n]] == slots.row[:n] // group_size).all(), "each beside its own prompt"
        alive = rng.random(n) < 0.7
        ended += slots.row[:n][~alive].tolist()
    assert sorted(ended) == list(range(prompts * group_size)), "each once"
    assert sorted(read) == list(range(prompts)), "each prompt is read once"


@given(room=st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_a_grid_has_a_place_for_each_slot(room: list[int]) -> None:
    grid = Grid.of(np.array(room), q=6)
    assert len(set(grid.place_of_slot)) == len(room)
    assert (grid.slot_of_place[grid.place_of_slot] == np.arange(len(room))).all()
    assert (grid.place_of_slot // grid.g == room).all(), "in its own room"
    assert grid.g == max(np.bincount(room))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 129, 256])
@pytest.mark.parametrize("t", [1, 63, 64, 65, 200])
def test_a_bucket_covers_what_it_is_for(n: int, t: int) -> None:
    most = StepShape(256, 200, 20, 16, even=False)
    needed = StepShape(n, t, q=min(n, 20), g=3, even=True)
    bucket = needed.rounded_up(most)
    assert needed.n <= bucket.n <= min(max(8, 2 * n), 256)
    assert needed.t <= bucket.t <= min(max(64, 2 * t), 200)
    assert needed.q <= bucket.q
    assert bucket.g == 16
    assert not bucket.even, "what is too much has to be hidden"


def test_there_are_few_buckets() -> None:
    """Each is a graph that has to be captured."""
    most = StepShape(512, 512, 64, 8, even=False)
    shapes = {StepShape(n, t, 1, 1, True).rounded_up(most) for n in range(1, 513) for t in range(1, 513, 9)}
    assert len({s.n for s in shapes}) == 7
    assert len({s.t for s in shapes}) == 4
    assert len(shapes) == 28
