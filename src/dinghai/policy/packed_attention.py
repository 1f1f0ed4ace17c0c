"""Attention of a packed row: a prompt attends to itself, each of its completions to the prompt and to itself.

Linear layers never see padding; here alone spans of similar length are padded to blocks, so that torch's own attention
can be used, forwards and backwards. A completion's keys lie behind a copy of its prompt's.

Shapes: M packed positions, C spans of a block, T the longest of them, K = T, or L + T with prompts of at most L tokens
before them, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dinghai.policy.sequences import PackedBatch, Span, by_length

UNREACHED = 2**40  # the place of a padded key: behind every query
NOTHING = Span(0, 0)


@dataclass(frozen=True)
class Block:
    """Spans of similar length as the rows of one padded attention, queries against keys.

    query_CT:          position of the packed row that each query is; padding repeats the last
    key_CK:            position of the packed row that each key is
    query_position_CT: place of each query in its sequence
    key_position_CK:   place of each key in its sequence; a padded key has one that no query reaches
    lengths:           of the spans
    """

    query_CT: Tensor
    key_CK: Tensor
    query_position_CT: Tensor
    key_position_CK: Tensor
    lengths: list[int]

    def mask(self, sliding_window: int | None, dtype: torch.dtype) -> Tensor | None:
        """0 where a query sees a key and -inf elsewhere, [C, 1, T, K]; None where the plain causal mask is meant."""
        if sliding_window is None and self.key_CK is self.query_CT:
            return None
        distance_CTK = self.query_position_CT[:, :, None] - self.key_position_CK[:, None, :]
        unseen_CTK = distance_CTK < 0
        if sliding_window is not None:
            unseen_CTK |= distance_CTK >= sliding_window
        mask_CTK = torch.zeros(unseen_CTK.shape, dtype=dtype, device=unseen_CTK.device)
        return mask_CTK.masked_fill_(unseen_CTK, float("-inf"))[:, None]


def _padded_places(spans: Sequence[Span], device: torch.device) -> Tensor:
    """Positions of the packed row, span under span, the last of each repeated to the width of the longest."""
    start = torch.tensor([s.start for s in spans], device=device)
    last = torch.tensor([s.length - 1 for s in spans], device=device)
    along = torch.arange(max(s.length for s in spans), device=device)
    return start[:, None] + torch.minimum(along, last[:, None])


def whole_block(sequences: Sequence[tuple[Span, Span]], device: torch.device) -> Block:
    """Prompts, each with the only completion that follows it if any, padded on the right; plainly causal."""
    lengths = [prompt.length + completion.length for prompt, completion in sequences]
    prompt_start, prompt_length, start, length = (
        torch.tensor(column, device=device)[:, None]
        for column in zip(*((p.start, p.length, c.start, c.length) for p, c in sequences), strict=True)
    )
    along = torch.arange(max(lengths), device=device)
    last = prompt_length + length - 1
    within = torch.minimum(along, last)
    place_CT = torch.where(within < prompt_length, prompt_start + within, start + within - prompt_length)
    position_CT = along.expand(place_CT.shape)
    return Block(place_CT, place_CT, position_CT, position_CT, lengths)


def completion_block(sequences: Sequence[tuple[Span, Span]], device: torch.device) -> Block:
    """Completions (second) padded on the right, each attending to its prompt (first) and itself."""
    prompts, completions = zip(*sequences, strict=True)
    own_CT, theirs_CL = _padded_places(completions, device), _padded_places(prompts, device)
    length = torch.tensor([p.length for p in prompts], device=device)[:, None]
    own_position_CT = length + torch.arange(own_CT.shape[1], device=device)
    along = torch.arange(theirs_CL.shape[1], device=device)
    return Block(
        query_CT=own_CT,
        key_CK=torch.cat([theirs_CL, own_CT], 1),
        query_position_CT=own_position_CT,
        key_position_CK=torch.cat([torch.where(along < length, along, UNREACHED), own_position_CT], 1),
        lengths=[c.length for c in completions],
    )


class PackedAttention:
    """The attention pattern of one packed batch. Indices and masks are made once, for all layers."""

    def __init__(self, batch: PackedBatch) -> None:
        device = batch.input_ids_M.device
        completions_of: list[list[Span]] = [[] for _ in batch.prompts]
        for completion, number in zip(batch.completions, batch.prompt_of, strict=True):
            if completion.length:
                completions_of[number].append(completion)
        # A prompt with a single completion is a sequence like any other; one with several is read for itself.
        whole = [
            (prompt, own[0] if len(own) == 1 else NOTHING)
            for prompt, own in zip(batch.prompts, completions_of, strict=True)
        ]
        shared = [
            (prompt, completion)
            for prompt, own in zip(batch.prompts, completions_of, strict=True)
            for completion in own
            if len(own) > 1
        ]
        self._blocks = [whole_block(some, device) for some in by_length(whole, lambda w: w[0].length + w[1].length)]
        self._blocks += [completion_block(some, device) for some in by_length(shared, lambda s: s[1].length)]
        self._longest = max(int(block.query_position_CT.max()) for block in self._blocks) + 1
        self._masks: dict[tuple[int | None, torch.dtype], list[Tensor | None]] = {}
        # All blocks' queries and keys are taken at once: each taking costs the backward pass a whole row of zeros.
        self._query_places = torch.cat([block.query_CT.flatten() for block in self._blocks])
        self._key_places = torch.cat([block.key_CK.flatten() for block in self._blocks])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        if sliding_window is not None and sliding_window >= self._longest:
            sliding_window = None
        masks = self._masks_for(sliding_window, query.dtype)
        places = (self._query_places, self._key_places, self._key_places)
        taken = [
            x[0].transpose(0, 1).index_select(0, place) for x, place in zip((query, key, value), places, strict=True)
        ]
        queries = taken[0].split([block.query_CT.numel() for block in self._blocks])
        keys, values = (x.split([block.key_CK.numel() for block in self._blocks]) for x in taken[1:])
        pieces = []
        sharing = query.shape[1] // key.shape[1]  # heads that share keys and values
        for *qkv, mask, block in zip(queries, keys, values, masks, self._blocks, strict=True):
            q, k, v = (x.unflatten(0, (len(block.lengths), -1)).transpose(1, 2) for x in qkv)
            if sharing > 1 and mask is not None:  # with both, CUDA devices would compute it in the plainest way
                k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
            out = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=sharing > 1 and mask is None,
            )
            pieces.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(pieces).index_select(0, self._back_M)[None]

    @cached_property
    def _back_M(self) -> Tensor:
        """Where each position of the row lies among the queries of all blocks, of which padding is left out."""
        real = torch.cat(
            [
                (torch.arange(block.query_CT.shape[1]) < torch.tensor(block.lengths)[:, None]).flatten()
                for block in self._blocks
            ]
        )
        kept = real.nonzero()[:, 0].to(self._query_places.device)
        return torch.empty_like(kept).index_copy_(0, self._query_places[kept], kept)

    def _masks_for(self, sliding_window: int | None, dtype: torch.dtype) -> list[Tensor | None]:
        """The blocks' masks; None for a window means all that comes before."""
        if (sliding_window, dtype) not in self._masks:
            self._masks[sliding_window, dtype] = [block.mask(sliding_window, dtype) for block in self._blocks]
        return self._masks[sliding_window, dtype]
