"""Attention while sampling: prompts among themselves, and then each row to its prompt and to what it has written.

Shapes: q prompts (rooms), g places of each, P columns of a prompt, n rows (slots), t columns of a row, k heads of keys
and values, r heads of queries to each of them, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.rollout.graphs import StepShape
from dinghai.rollout.memory import Memory

# Scores that attention must not see. Finite, so that a row of nothing else gives weights instead of NaN; they vanish
# beside those of the row's other part, which always holds the row's own token.
HIDDEN = -1e30


class PromptAttention:
    """Prompts packed one after the other into [1, N]; what is read is kept in `prompts`, and room is made in `own`."""

    def __init__(self, lengths: Sequence[int], rooms: Tensor, prompts: Memory, own: Memory) -> None:
        length_q = torch.tensor(lengths, device=rooms.device)
        start_q = length_q.cumsum(0) - length_q
        self._width = width = max(lengths)
        # Padded on the right with the prompt's last token, which no real token sees.
        column_P = torch.arange(width, device=rooms.device)
        self._token_qP = start_q[:, None] + torch.minimum(column_P, length_q[:, None] - 1)
        self._packed_N = (column_P < length_q[:, None]).flatten().nonzero()[:, 0]
        self._distance_PP = column_P[:, None] - column_P
        self._rooms, self._prompts, self._own = rooms, prompts, own

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        query, key, value = (x[0][:, self._token_qP].transpose(0, 1) for x in (query, key, value))  # [q, heads, P, d]
        for kept, read in zip(self._prompts.of(layer, key, value), (key, value), strict=True):
            kept[self._rooms, :, : self._width] = read.to(kept.dtype)
        self._own.of(layer, key, value)
        cut = sliding_window is not None and sliding_window < self._width
        mask = (self._distance_PP >= 0) & (self._distance_PP < (sliding_window or 0)) if cut else None
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self._packed_N)[None]


@dataclass
class SlotAttention:
    """One token of each row, packed into [1, n]: it is written to the row's own memory and attends to both parts.

    place_n:         where each row stands in the grid of q x g places
    slot_G:          the row at each place, q·g of them
    prompt_length_q: of the prompt in each room
    column_n:        the row's own column that its token is written to
    length_n:        of the prompt that each row belongs to
    width:           columns of prompts that anything is seen in
    """

    prompts: Memory
    own: Memory
    shape: StepShape
    place_n: Tensor
    slot_G: Tensor
    prompt_length_q: Tensor
    column_n: Tensor
    length_n: Tensor
    width: int

    def __post_init__(self) -> None:
        self._masks: dict[int | None, tuple[Tensor, Tensor | None]] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        n, t, q, g = self.shape.n, self.shape.t, self.shape.q, self.shape.g
        k, r, d = key.shape[1], query.shape[1] // key.shape[1], query.shape[3]
        kept_key, kept_value = self.own.of(layer, key, value)
        self._write(kept_key[:n], key)
        self._write(kept_value[:n], value)
        prompt_mask, own_mask = self._masks_of(sliding_window)

        query_nkrd = query[0].transpose(0, 1).to(kept_key.dtype).contiguous().view(n, k, r, d)
        query_qkGd = (
            query_nkrd.index_select(0, self.slot_G).view(q, g, k, r, d).transpose(1, 2).reshape(q * k, g * r, d)
        )
        keys, values = (x[:q, :, : self.width].flatten(0, 1) for x in self.prompts.of(layer, key, value))
        scores = _scores(query_qkGd, keys, scaling, _spread(prompt_mask, q, k, g, r))
        prompt_part = [
            x.view(q, k, g, r, -1).transpose(1, 2).reshape(q * g, k, r, -1).index_select(0, self.place_n)
            for x in _weigh(scores, values)
        ]

        keys, values = (x[:n, :, :t].flatten(0, 1) for x in (kept_key, kept_value))
        spread = None if own_mask is None else own_mask[:, None].expand(n, k, t).reshape(n * k, 1, t)
        scores = _scores(query_nkrd.view(n * k, r, d), keys, scaling, spread)
        own_part = [x.view(n, k, r, -1) for x in _weigh(scores, values)]
        return _merge(prompt_part, own_part).reshape(1, n, k * r, -1).to(query.dtype)

    def _write(self, kept: Tensor, read: Tensor) -> None:
        """[1, k, n, d] to the column of each row."""
        read = read[0].transpose(0, 1).to(kept.dtype)
        if self.shape.even:
            kept[:, :, self.shape.t - 1] = read
        else:
            column_nk1d = self.column_n[:, None, None, None].expand(*read.shape[:2], 1, read.shape[2])
            kept.scatter_(2, column_nk1d, read[:, :, None])

    def _masks_of(self, window: int | None) -> tuple[Tensor, Tensor | None]:
        """What is added to the scores: [q, 1 or g, P] and, where it is not all 0, [n, t]. Made once a step."""
        if window not in self._masks:
            device = self.length_n.device
            column_P = torch.arange(self.width, device=device)
            hidden_qgP = (column_P >= self.prompt_length_q[:, None])[:, None]
            distance_nt = self.column_n[:, None] - torch.arange(self.shape.t, device=device)
            own = None if self.shape.even else distance_nt < 0
            if window is not None:
                position_qg1 = (self.length_n + self.column_n)[self.slot_G].view(self.shape.q, self.shape.g, 1)
                hidden_qgP = hidden_qgP | (position_qg1 - column_P >= window)
                own = (distance_nt >= window) | (distance_nt < 0)
            self._masks[window] = _added(hidden_qgP), None if own is None else _added(own)
        return self._masks[window]


def _added(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, HIDDEN)


def _spread(mask: Tensor, q: int, k: int, g: int, r: int) -> Tensor:
    """[q, 1 or g, P] to what is added to [q·k, g·r, P]."""
    if mask.shape[1] == 1:
        return mask[:, None].expand(q, k, 1, -1).reshape(q * k, 1, -1)
    return mask[:, None, :, None].expand(q, k, g, r, -1).reshape(q * k, g * r, -1)


def _scores(query: Tensor, keys: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """Float32 scores of a batch of products."""
    if query.dtype != torch.float32:
        scores = torch.bmm(query, keys.mT, out_dtype=torch.float32).mul_(scaling)
        return scores if mask is None else scores.add_(mask)
    if mask is None:
        return torch.bmm(query, keys.mT).mul_(scaling)
    return torch.baddbmm(mask, query, keys.mT, alpha=scaling)


def _weigh(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One part of a softmax: its largest score, the sum of exp(score - largest), and the values so weighed.

    scores are overwritten.
    """
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    if values.dtype != torch.float32:
        return largest, total, torch.bmm(weights.to(values.dtype), values, out_dtype=torch.float32)
    return largest, total, torch.bmm(weights, values)


def _merge(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The softmax over both parts together."""
    largest = torch.maximum(one[0], other[0])
    of_one, of_other = (one[0] - largest).exp_(), (other[0] - largest).exp_()
    total = one[1] * of_one + other[1] * of_other
    return (one[2] * of_one + other[2] * of_other) / total
