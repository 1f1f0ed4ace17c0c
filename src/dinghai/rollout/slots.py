"""Which row is decoded in which slot: rows come as slots are free, and leave as they finish.

Kept on the host, as numbers only; what they describe (tokens, keys and values) is moved by whoever decodes.

A room holds what was read of one prompt.

Shapes: q rooms in use, g places of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Indices = np.ndarray  # int64


@dataclass(frozen=True)
class Moves:
    """From where to where: the last ones fill the holes, so that those in use are always the first."""

    source: Indices
    target: Indices

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Arrivals:
    """Rows that got slots [first_slot, first_slot + len(rows)), and the prompts that have to be read into rooms."""

    first_slot: int
    rows: Indices
    room_of_row: Indices
    prompts: list[int]
    rooms: list[int]


class Slots:
    """At most `capacity` rows at a time, in the order of the prompts, out of at most `rooms` prompts."""

    def __init__(self, prompts: int, group_size: int, capacity: int) -> None:
        self._group_size, self._total = group_size, prompts * group_size
        self.capacity = min(capacity, self._total)
        # Twice what full groups need: the last rows of earlier prompts hold theirs for a while.
        self.rooms = min(prompts, 2 * -(-self.capacity // group_size) + 1)
        self.row = np.zeros(self.capacity, dtype=np.int64)
        self.room = np.zeros(self.capacity, dtype=np.int64)
        self.born = np.zeros(self.capacity, dtype=np.int64)  # the step before which the row's first token was drawn
        self.used = 0
        self.prompt_of_room: list[int] = []
        self._next_row = 0

    @property
    def waiting(self) -> int:
        """Rows that have not had a slot yet."""
        return self._total - self._next_row

    def worthwhile(self, alive: int) -> bool:
        """Whether so many slots are free that filling them is worth reading prompts: an eighth of them, or a group."""
        return self.waiting > 0 and self.capacity - alive >= min(
            self.waiting, max(self._group_size, self.capacity // 8), self.capacity
        )

    def leave(self, alive: np.ndarray) -> tuple[Moves, Moves]:
        """Rows that are not alive give up their slots: the moves of slots, then of rooms."""
        alive = alive[: self.used]
        slots = _close_ranks(alive)
        for kept in (self.row, self.room, self.born):
            kept[slots.target] = kept[slots.source]
        self.used = int(alive.sum())
        occupied = np.zeros(len(self.prompt_of_room), dtype=bool)
        occupied[self.room[: self.used]] = True
        if self.waiting and self._next_row % self._group_size:  # a group of which some are still waiting
            cut = self._next_row // self._group_size
            occupied |= np.array([prompt == cut for prompt in self.prompt_of_room], dtype=bool)
        rooms = _close_ranks(occupied)
        renamed = np.arange(len(occupied))
        renamed[rooms.source] = rooms.target
        self.room[: self.used] = renamed[self.room[: self.used]]
        for source, target in zip(rooms.source, rooms.target, strict=True):
            self.prompt_of_room[target] = self.prompt_of_room[source]
        del self.prompt_of_room[int(occupied.sum()) :]
        return slots, rooms

    def arrive(self, step: int) -> Arrivals:
        """Gives the free slots to rows that wait, as far as there are rooms for their prompts."""
        first = self.used
        rows, room_of_row, prompts, rooms = [], [], [], []
        here = {prompt: room for room, prompt in enumerate(self.prompt_of_room)}
        while self.waiting and self.used < self.capacity:
            prompt = self._next_row // self._group_size
            if prompt not in here:
                if len(self.prompt_of_room) == self.rooms:
                    break
                here[prompt] = len(self.prompt_of_room)
                prompts.append(prompt)
                rooms.append(here[prompt])
                self.prompt_of_room.append(prompt)
            rows.append(self._next_row)
            room_of_row.append(here[prompt])
            self._next_row += 1
            self.used += 1
        self.row[first : self.used] = rows
        self.room[first : self.used] = room_of_row
        self.born[first : self.used] = step
        return Arrivals(first, self.row[first : self.used].copy(), self.room[first : self.used].copy(), prompts, rooms)


@dataclass(frozen=True)
class Grid:
    """The slots in use by room, q x g places: what the rows of one prompt ask of it is one matrix product.

    slot_of_place: the slot at each place; slot 0 at places that are empty
    place_of_slot: where each slot in use stands
    """

    q: int
    g: int
    slot_of_place: Indices
    place_of_slot: Indices

    @classmethod
    def of(cls, room: Indices, q: int, g: int | None = None) -> Grid:
        """room: of each slot in use; g: places a room, by default as many as the fullest needs."""
        count = np.bincount(room, minlength=q)
        g = int(count.max(initial=0)) if g is None else g
        order = np.argsort(room, kind="stable")
        within = np.arange(len(room)) - np.repeat(np.cumsum(count) - count, count)
        place_of_slot = np.empty(len(room), dtype=np.int64)
        place_of_slot[order] = room[order] * g + within
        slot_of_place = np.zeros(q * g, dtype=np.int64)
        slot_of_place[place_of_slot] = np.arange(len(room))
        return cls(q, g, slot_of_place, place_of_slot)


def _close_ranks(kept: np.ndarray) -> Moves:
    """Moves the last that are kept into the holes among the first."""
    count = int(kept.sum())
    return Moves(count + np.flatnonzero(kept[count:]), np.flatnonzero(~kept[:count]))
