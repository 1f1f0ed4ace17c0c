"""Attention of a packed row: a prompt attends to itself, each of its completions to the prompt and to itself.

Shapes: M packed positions, P prompts, C completions of a bucket, L longest prompt, T longest completion, d size of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dinghai.policy.sequences import PackedBatch, Span


@dataclass(frozen=True)
class Block:
    """Spans of similar lengths as the rows of one padded attention, queries against keys.

    query_index:     position of the row that each query is, [C * T]; padding repeats another
    key_index:       position of the row that each key is, [C * (L + T)]
    query_position:  place of each query in its sequence, [C, T]
    key_position:    place of each key in its sequence, [C, L + T]; a padded key has one that no query reaches
    kept:            which of the [C * T] queries are real, and their positions of the row
    """

    rows: int
    query_index: Tensor
    key_index: Tensor
    query_position: Tensor
    key_position: Tensor
    kept: Tensor
    place: Tensor
    causal: bool

    def mask(self, sliding_window: int | None) -> Tensor | None:
        """True where a query sees a key, [C, 1, T, L + T]; None where the plain causal mask is meant."""
        if self.causal and (sliding_window is None or sliding_window >= self.query_position.shape[1]):
            return None
        distance = self.query_position[:, :, None] - self.key_position[:, None, :]
        seen = distance >= 0
        if sliding_window is not None:
            seen &= distance < sliding_window
        return seen[:, None]


UNREACHED = 2**40  # the place of a padded key: behind every query


def prompt_block(prompts: Sequence[Span], device: torch.device) -> Block:
    """Prompts padded on the right, each attending to itself."""
    width = max(span.length for span in prompts)
    index = torch.tensor([[s.start + min(t, s.length - 1) for t in range(width)] for s in prompts], device=device)
    real = torch.tensor([[t < s.length for t in range(width)] for s in prompts], device=device).flatten()
    position = torch.arange(width, device=device).expand(len(prompts), width)
    kept = real.nonzero()[:, 0]
    flat = index.flatten()
    return Block(len(prompts), flat, flat, position, position, kept, flat[kept], causal=True)


def completion_block(completions: Sequence[Span], prompts: Sequence[Span], device: torch.device) -> Block:
    """Completions padded on the right, each attending to its prompt and itself."""
    before, width = max(s.length for s in prompts), max(s.length for s in completions)
    own = torch.tensor([[c.start + min(t, c.length - 1) for t in range(width)] for c in completions], device=device)
    theirs = torch.tensor([[p.start + min(t, p.length - 1) for t in range(before)] for p in prompts], device=device)
    real = torch.tensor([[t < c.length for t in range(width)] for c in completions], device=device).flatten()
    length = torch.tensor([p.length for p in prompts], device=device)
    position = length[:, None] + torch.arange(width, device=device)
    of_prompt = torch.arange(before, device=device).expand(len(prompts), before)
    of_prompt = torch.where(of_prompt < length[:, None], of_prompt, UNREACHED)
    kept = real.nonzero()[:, 0]
    flat = own.flatten()
    return Block(
        rows=len(completions),
        query_index=flat,
        key_index=torch.cat([theirs, own], 1).flatten(),
        query_position=position,
        key_position=torch.cat([of_prompt, position], 1),
        kept=kept,
        place=flat[kept],
        causal=False,
    )


class PackedAttention:
    """The attention pattern of one packed batch. Indices and masks are made once, for all layers."""

    def __init__(self, batch: PackedBatch) -> None:
        device = batch.input_ids_M.device
        self._blocks = [prompt_block(batch.prompts, device)] if batch.prompts else []
        of = [(c, batch.prompts[p]) for c, p in zip(batch.completions, batch.prompt_of, strict=True) if c.length]
        for bucket in _buckets(of):
            self._blocks.append(completion_block([c for c, _ in bucket], [p for _, p in bucket], device))
        self._masks: dict[int | None, list[Tensor | None]] = {}
        # Where each position of the row comes to lie among the queries of all blocks.
        place = torch.cat([block.place for block in self._blocks])
        self._back = torch.empty_like(place)
        self._back[place] = torch.arange(len(place), device=device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        if sliding_window not in self._masks:
            self._masks[sliding_window] = [block.mask(sliding_window) for block in self._blocks]
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # [M, heads, d]
        pieces = []
        for block, mask in zip(self._blocks, self._masks[sliding_window], strict=True):
            q = query.index_select(0, block.query_index).unflatten(0, (block.rows, -1))
            k = key.index_select(0, block.key_index).unflatten(0, (block.rows, -1))
            v = value.index_select(0, block.key_index).unflatten(0, (block.rows, -1))
            out = scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=q.shape[2] != k.shape[2],
            )
            pieces.append(out.transpose(1, 2).flatten(0, 1).index_select(0, block.kept))
        return torch.cat(pieces).index_select(0, self._back)[None]


def _buckets(of: list[tuple[Span, Span]]) -> list[list[tuple[Span, Span]]]:
    """Completions of similar length, so that little of the attention is padding."""
    buckets: list[list[tuple[Span, Span]]] = []
    for pair in sorted(of, key=lambda pair: pair[0].length):
        if buckets and pair[0].length <= max(1.25 * buckets[-1][0][0].length, 8):
            buckets[-1].append(pair)
        else:
            buckets.append([pair])
    return buckets
