"""Scoring: the log-probabilities that a policy gives to the tokens of completions.

Shapes: B sequences, S padded positions, N packed completion tokens of a micro-batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.ops.head import token_log_probs
from dinghai.policy.model import Policy


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


def micro_batches(sequences: Sequence[TokenSequence], chosen: Sequence[int], token_budget: int) -> list[list[int]]:
    """Splits `chosen` into runs of sequences of similar length whose padded size stays within `token_budget`.

    A sequence longer than the budget gets a micro-batch of its own. The split depends on nothing but the arguments,
    so scoring the same minibatch twice does the same arithmetic and the ratio is exactly 1 before the first update.
    """
    batches: list[list[int]] = []
    for i in sorted(chosen, key=lambda i: (len(sequences[i]), i)):
        # Sorted by length: the newest sequence is the longest, so it sets the padded width.
        if batches and (len(batches[-1]) + 1) * len(sequences[i]) <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


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


def score(
    policy: Policy, sequences: Sequence[TokenSequence], temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """logp_N and entropy_N (nats, float32) of the completion tokens, packed sequence after sequence."""
    batch = pad(sequences, policy.pad_id, policy.device)
    hidden_NH = policy.hidden(batch.input_ids_BS).flatten(0, 1).index_select(0, batch.predict_N)
    return token_log_probs(
        hidden_NH, policy.to_logits, batch.target_N, policy.vocabulary, temperature, entropy_gradient
    )
