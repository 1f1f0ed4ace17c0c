"""Prompts with their completions, and how they lie in the tensors that a model reads: padded, or packed into one row.

Shapes: B sequences, S padded positions, M packed positions, N completion tokens, packed sequence after sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

WIDENING = 1.25  # the longest of a bucket over its shortest: more would be padding, less would be more calls
NARROW = 8  # what is up to this length shares a bucket

Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and its completion, as token ids."""

    prompt_ids: list[int]
    completion_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences padded on the right. Attention is causal, so no real token ever sees the padding and no mask is needed.

    input_ids_BS: token ids
    predict_N:    flat index into B*S of the position that predicts each completion token
    target_N:     the completion tokens, packed sequence after sequence
    """

    input_ids_BS: Tensor
    predict_N: Tensor
    target_N: Tensor


def pad(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device) -> PaddedBatch:
    """Pads sequences on the right and points at the positions that predict their completion tokens."""
    width = max(map(len, sequences))
    rows = [s.prompt_ids + s.completion_ids + [pad_id] * (width - len(s)) for s in sequences]
    predict = [
        row * width + len(s.prompt_ids) - 1 + t for row, s in enumerate(sequences) for t in range(len(s.completion_ids))
    ]
    target = [token for s in sequences for token in s.completion_ids]
    input_ids_BS, predict_N, target_N = (torch.tensor(x, device=device) for x in (rows, predict, target))
    return PaddedBatch(input_ids_BS, predict_N, target_N)


@dataclass(frozen=True)
class Span:
    """Consecutive positions of a packed row: those of a prompt, or of what is read of a completion."""

    start: int
    length: int


def by_length(items: Sequence[Item], length: Callable[[Item], int]) -> list[list[Item]]:
    """Items of similar length together, the shortest first, so that little of what is padded is padding."""
    buckets: list[list[Item]] = []
    for item in sorted(items, key=length):
        if buckets and length(item) <= max(WIDENING * length(buckets[-1][0]), NARROW):
            buckets[-1].append(item)
        else:
            buckets.append([item])
    return buckets


@dataclass(frozen=True)
class PackedBatch:
    """Prompts and completions in one row without padding: all prompts first, then what is read of the completions.

    The last token of a completion is not read, since nothing is predicted after it.

    input_ids_M:    token ids
    position_ids_M: each token's place in its own sequence: a completion goes on where its prompt ends
    prompts:        where each prompt lies
    completions:    where each completion lies, those of one prompt one after the other
    prompt_of:      number of each completion's prompt
    predict_N:      position of the row that predicts each completion token
    target_N:       the completion tokens, packed sequence after sequence in the order that was asked for
    """

    input_ids_M: Tensor
    position_ids_M: Tensor
    prompts: list[Span]
    completions: list[Span]
    prompt_of: list[int]
    predict_N: Tensor
    target_N: Tensor


def pack(sequences: Sequence[TokenSequence], shared_prompts: bool, device: torch.device) -> PackedBatch:
    """Lays sequences into one row; with `shared_prompts`, prompts that are equal lie there once."""
    number: dict[object, int] = {}  # of each prompt, by its tokens; where nothing is shared, by its sequence
    prompt_of = [
        number.setdefault(tuple(s.prompt_ids) if shared_prompts else i, len(number)) for i, s in enumerate(sequences)
    ]
    order = sorted(range(len(sequences)), key=prompt_of.__getitem__)
    first = {prompt_of[i]: i for i in reversed(range(len(sequences)))}
    prompt_ids = [sequences[first[p]].prompt_ids for p in range(len(number))]
    read_ids = [sequences[i].completion_ids[:-1] for i in order]

    pieces = prompt_ids + read_ids
    starts = list(accumulate(map(len, pieces), initial=0))
    spans = [Span(start, len(piece)) for start, piece in zip(starts, pieces, strict=False)]
    prompts, completions = spans[: len(prompt_ids)], spans[len(prompt_ids) :]
    before = [0] * len(prompts) + [prompts[prompt_of[i]].length for i in order]
    position = [b + t for b, span in zip(before, spans, strict=True) for t in range(span.length)]

    place = dict(zip(order, completions, strict=True))
    predict = []
    for i, s in enumerate(sequences):
        if s.completion_ids:
            prompt, completion = prompts[prompt_of[i]], place[i]
            predict.append(prompt.start + prompt.length - 1)
            predict.extend(range(completion.start, completion.start + completion.length))
    target = [token for s in sequences for token in s.completion_ids]
    input_ids = [token for piece in pieces for token in piece]
    tensors = [torch.tensor(x, dtype=torch.long, device=device) for x in (input_ids, position, predict, target)]
    return PackedBatch(
        input_ids_M=tensors[0],
        position_ids_M=tensors[1],
        prompts=prompts,
        completions=completions,
        prompt_of=[prompt_of[i] for i in order],
        predict_N=tensors[2],
        target_N=tensors[3],
    )
