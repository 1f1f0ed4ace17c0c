"""Decoding in slots: each prompt is read once, its rows are drawn token by token, finished rows make room for others.

Shapes: R rows of the whole call, T longest completion, S slots, n of them in use, q rooms (prompts) in use, g places of
each, H hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dinghai.policy.attention import attending
from dinghai.policy.model import Policy
from dinghai.rollout.engine import Completion
from dinghai.rollout.graphs import Direct, Runner, StepShape
from dinghai.rollout.memory import Memory
from dinghai.rollout.patterns import PromptAttention, SlotAttention
from dinghai.rollout.slots import Grid, Slots

# Finished rows are dropped once they are more than this share: what moves into their places has to be copied.
DROP_SHARE = 0.05
# Tokens of prompts that are read together.
PREFILL_TOKENS = 8192
# Logits that are made and drawn from together, so that they are still in the processor's cache when they are read.
LOGITS_AT_ONCE = (2**20, 2**27)  # on CPU; on CUDA, where it is not the cache that counts but the number of kernels

# (logits_nV, row_n, position_n) -> (token_n, logp_n); the logits may be overwritten
Choose = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Decoder:
    """One call: `group_size` completions of each of `prompts`, at most `capacity` at once.

    The policy's model must ask patterns for its attention (`dinghai.policy.attention.install`).
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[list[int]],
        group_size: int,
        capacity: int,
        max_new_tokens: int,
        choose: Choose,
        runner: Runner | None = None,
    ) -> None:
        self._policy, self._prompts, self._choose = policy, prompts, choose
        self._runner = runner or Direct()
        self._limit = max_new_tokens
        self._slots = slots = Slots(len(prompts), group_size, capacity)
        self._rows, device = len(prompts) * group_size, policy.device
        self._prompt_memory = Memory(slots.rooms, max(map(len, prompts)))
        self._own_memory = Memory(slots.capacity, max_new_tokens)
        g = min(group_size, slots.capacity)
        self._most = StepShape(slots.capacity, max_new_tokens, slots.rooms, g, even=False)
        self._shape = self._most
        # What a step works on stays in the same places. Of each slot: its row (one more than there are: nobody's), the
        # token drawn last, how many were drawn, the prompt's length, the place in the grid, and whether it goes on.
        self._row_S, self._token_S, self._age_S, self._length_S, self._place_S = torch.zeros(
            5, slots.capacity, dtype=torch.long, device=device
        ).unbind(0)
        self._row_S.fill_(self._rows)
        self._alive_S = torch.zeros(slots.capacity, dtype=torch.bool, device=device)
        self._slot_G = torch.zeros(slots.rooms * g, dtype=torch.long, device=device)
        self._prompt_length_Q = torch.zeros(slots.rooms, dtype=torch.long, device=device)
        self._at_once = max(1, LOGITS_AT_ONCE[device.type == "cuda"] // policy.vocabulary)
        self._logits_nV: Tensor | None = None
        # What a room's rows draw their first token from.
        self._last_hidden_QH: Tensor | None = None
        # A row that has ended writes on behind its end, where nobody looks, until it leaves: at the limit to column T.
        self._tokens_RT = torch.zeros(self._rows + 1, max_new_tokens + 1, dtype=torch.long, device=device)
        self._logp_RT = torch.zeros(self._rows + 1, max_new_tokens + 1, device=device)
        self._ends_V = torch.zeros(policy.vocabulary, dtype=torch.bool, device=device)
        self._ends_V[[i for i in policy.end_ids if i < policy.vocabulary]] = True

    @torch.inference_mode()
    def run(self) -> list[Completion]:
        """The completions, prompt after prompt."""
        slots, step = self._slots, 0
        with self._policy.checkpointing_paused():
            while True:
                if step % self._runner.checked_every == 0 or slots.used == 0:
                    alive = self._alive_S[: slots.used].cpu().numpy()
                    living = int(alive.sum())
                    come = slots.worthwhile(living)
                    if come or living < (1 - DROP_SHARE) * slots.used:
                        self._leave(alive, step)
                        if come:
                            self._arrive(step)
                            continue  # some rows end with their first token
                    if slots.used == 0:
                        break
                self._runner.run(self._step_shape(step), self._step)
                step += 1
        return self._completions()

    def _leave(self, alive: np.ndarray, step: int) -> None:
        slots = self._slots
        moved, moved_rooms = slots.leave(alive)
        if len(moved):
            source, target = self._index(moved.source), self._index(moved.target)
            for kept in (self._row_S, self._token_S, self._age_S, self._length_S, self._alive_S):
                kept[target] = kept[source]
            self._own_memory.move(source, target, int(step - slots.born[: slots.used].min()))
        if len(moved_rooms):
            source, target = self._index(moved_rooms.source), self._index(moved_rooms.target)
            self._prompt_memory.move(source, target, self._prompt_memory.columns)
            assert self._last_hidden_QH is not None
            self._last_hidden_QH[target] = self._last_hidden_QH[source]
        self._regroup()

    def _arrive(self, step: int) -> None:
        """Reads the prompts of rows that wait, and draws the rows' first tokens."""
        arrivals = self._slots.arrive(step)
        if not len(arrivals.rows):
            return
        for part in _parts([len(self._prompts[p]) for p in arrivals.prompts], PREFILL_TOKENS):
            self._read_prompts([arrivals.prompts[i] for i in part], [arrivals.rooms[i] for i in part])
        self._regroup()
        here = slice(arrivals.first_slot, self._slots.used)
        room_n = self._index(arrivals.room_of_row)
        self._row_S[here] = self._index(arrivals.rows)
        self._length_S[here] = self._prompt_length_Q[room_n]
        self._age_S[here] = 0
        self._alive_S[here] = True
        assert self._last_hidden_QH is not None
        self._draw(self._last_hidden_QH[room_n], here)

    def _read_prompts(self, prompts: list[int], rooms: list[int]) -> None:
        ids = [self._prompts[p] for p in prompts]
        lengths = [len(x) for x in ids]
        room_q = self._index(rooms)
        pattern = PromptAttention(lengths, room_q, self._prompt_memory, self._own_memory)
        position_N = self._index([i for n in lengths for i in range(n)])
        last_q = self._index(lengths).cumsum(0) - 1
        with attending(pattern):
            hidden_qH = self._read(self._index([token for x in ids for token in x]), position_N, last_q)
        if self._last_hidden_QH is None:
            self._last_hidden_QH = hidden_qH.new_zeros(self._slots.rooms, hidden_qH.shape[-1])
        self._last_hidden_QH[room_q] = hidden_qH

    def _step_shape(self, step: int) -> StepShape:
        born = self._slots.born[: self._slots.used]
        t = min(int(step - born.min()) + 1, self._limit)
        shape = dataclasses.replace(self._shape, t=t, even=bool((born == born[0]).all()))
        return shape.rounded_up(self._most) if self._runner.static else shape

    def _step(self, shape: StepShape) -> None:
        """Reads the token drawn last of each row in use and draws the next one. Never waits for the device."""
        n = shape.n
        column_n = (self._age_S[:n] - 1).clamp(0, self._limit - 1)
        pattern = SlotAttention(
            self._prompt_memory,
            self._own_memory,
            shape,
            place_n=self._place_S[:n],
            slot_G=self._slot_G[: shape.q * shape.g],
            prompt_length_q=self._prompt_length_Q[: shape.q],
            column_n=column_n,
            length_n=self._length_S[:n],
            width=self._width,
        )
        with attending(pattern):
            hidden_nH = self._read(self._token_S[:n], self._length_S[:n] + column_n, None)
        self._draw(hidden_nH, slice(0, n))

    def _read(self, token_N: Tensor, position_N: Tensor, wanted: Tensor | None) -> Tensor:
        """The hidden states of packed tokens, of those `wanted` or of all; whole logits where the head is not apart."""
        policy = self._policy
        inputs = {"input_ids": token_N[None], "position_ids": position_N[None], "use_cache": False}
        if policy.factored:
            hidden_NH = policy.backbone(**inputs).last_hidden_state[0]
            return hidden_NH if wanted is None else hidden_NH[wanted]
        return policy.model(**inputs, logits_to_keep=0 if wanted is None else wanted).logits[0]

    def _draw(self, hidden_nH: Tensor, here: slice) -> None:
        """Draws the next token of the slots `here` and writes it down."""
        row_n, age_n, alive_n = self._row_S[here], self._age_S[here], self._alive_S[here]
        parts = [
            self._choose(self._logits(hidden_nH[part]), row_n[part], age_n[part])
            for part in _slices(len(row_n), self._at_once)
        ]
        token_n, logp_n = (torch.cat(x) if len(parts) > 1 else x[0] for x in zip(*parts, strict=True))
        self._tokens_RT[row_n, age_n] = token_n
        self._logp_RT[row_n, age_n] = logp_n
        self._token_S[here] = token_n
        age_n += alive_n
        alive_n &= ~self._ends_V[token_n] & (age_n < self._limit)

    def _logits(self, hidden_nH: Tensor) -> Tensor:
        """Into the same place each time, where that can be had: fresh memory costs more than what is written to it."""
        weight_VH = self._policy.head_weight
        if weight_VH is None:
            return self._policy.to_logits(hidden_nH)
        if self._logits_nV is None:
            self._logits_nV = hidden_nH.new_empty(min(self._most.n, self._at_once), len(weight_VH))
        return torch.mm(hidden_nH, weight_VH.t(), out=self._logits_nV[: len(hidden_nH)])

    def _regroup(self) -> None:
        """Which rows ask which prompt, after any of them moved."""
        slots, n, static = self._slots, self._slots.used, self._runner.static
        grid = Grid.of(slots.room[:n], len(slots.prompt_of_room), self._most.g if static else None)
        self._shape = StepShape(n, 1, grid.q, grid.g, even=False)
        self._slot_G[: grid.q * grid.g] = self._index(grid.slot_of_place)
        self._place_S[:n] = self._index(grid.place_of_slot)
        lengths = [len(self._prompts[p]) for p in slots.prompt_of_room]
        self._prompt_length_Q[: grid.q] = self._index(lengths)
        self._width = self._prompt_memory.columns if static else max(lengths, default=0)
        # Slots and rooms that are not in use may be read all the same, to fill a bucket.
        self._slot_G[grid.q * grid.g :] = 0
        self._prompt_length_Q[grid.q :] = 0
        self._row_S[n:] = self._rows
        self._alive_S[n:] = False
        self._place_S[n:] = 0

    def _completions(self) -> list[Completion]:
        ends_RT = self._ends_V[self._tokens_RT[: self._rows, : self._limit]]
        finished = ends_RT.any(1)
        length = torch.where(finished, ends_RT.byte().argmax(1) + 1, self._limit)
        tokens, logps = self._tokens_RT.cpu().numpy(), self._logp_RT.cpu().numpy()
        return [
            Completion(tokens[row, :n].tolist(), logps[row, :n].copy(), done)
            for row, (n, done) in enumerate(zip(length.tolist(), finished.tolist(), strict=True))
        ]

    def _index(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.long, device=self._policy.device)


def _slices(total: int, most: int) -> list[slice]:
    return [slice(i, i + most) for i in range(0, total, most)]


def _parts(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Runs of consecutive indices whose lengths add up to at most `budget`, or of one."""
    parts: list[list[int]] = []
    total = 0
    for i, length in enumerate(lengths):
        if parts and total + length <= budget:
            parts[-1].append(i)
            total += length
        else:
            parts.append([i])
            total = length
    return parts
