"""Scoring: the log-probabilities that a policy gives to the tokens of completions.

Shapes: B sequences, S padded positions, N packed completion tokens of a micro-batch, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dinghai.ops.head import score_head, token_log_probs
from dinghai.policy.model import Policy
from dinghai.policy.reading import Reading, read_states
from dinghai.policy.sequences import PaddedBatch, TokenSequence, pad

__all__ = ["PaddedBatch", "TokenSequence", "micro_batches", "pad", "read", "score"]


def micro_batches(
    sequences: Sequence[TokenSequence], chosen: Sequence[int], token_budget: int, reading: Reading
) -> list[list[int]]:
    """Splits `chosen` into micro-batches that read at most `token_budget` positions each.

    Counted is what `reading` makes the model read: padding where there is padding, a shared prompt once. Completions
    of a shared prompt stay together, unless they exceed the budget by themselves; a sequence longer than the budget
    gets a micro-batch of its own. The split depends on nothing but the arguments, not on the order of `chosen`, so
    scoring the same minibatch twice does the same arithmetic and the ratio is exactly 1 before the first update.
    """
    if reading.shared_prompts:
        return _whole_groups(sequences, chosen, token_budget)
    batches: list[list[int]] = []
    positions = 0  # that the last micro-batch reads
    for i in sorted(chosen, key=lambda i: (len(sequences[i]), i)):
        if reading.packed:
            after = positions + _positions(sequences[i])
        else:  # sorted by length: the newest sequence is the longest, so it sets the padded width
            after = (len(batches[-1]) + 1) * len(sequences[i]) if batches else 0
        if batches and after <= token_budget:
            batches[-1].append(i)
            positions = after
        else:
            batches.append([i])
            positions = _positions(sequences[i])
    return batches


def _whole_groups(sequences: Sequence[TokenSequence], chosen: Sequence[int], token_budget: int) -> list[list[int]]:
    """Micro-batches of groups with the same prompt; a group that exceeds the budget is cut, its prompt repeated."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(chosen):
        groups.setdefault(tuple(sequences[i].prompt_ids), []).append(i)
    batches: list[list[int]] = []
    left = 0  # positions that still fit into the last micro-batch
    for prompt, members in groups.items():
        completions = [_positions(sequences[i]) - len(prompt) for i in members]
        if len(prompt) + sum(completions) <= left:
            batches[-1].extend(members)
            left -= len(prompt) + sum(completions)
            continue
        left = -1
        for i, completion in zip(members, completions, strict=True):
            if completion <= left:
                batches[-1].append(i)
                left -= completion
            else:
                batches.append([i])
                left = token_budget - len(prompt) - completion
    return batches


def _positions(sequence: TokenSequence) -> int:
    """How many of a sequence's tokens are read: not the last of the completion, after which nothing is predicted."""
    return len(sequence.prompt_ids) + max(0, len(sequence.completion_ids) - 1)


def read(policy: Policy, sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
    """What the head takes to predict each completion token, hidden_NH, and those tokens, target_N.

    Packed sequence after sequence in the order given, with a gradient; read as `policy.reading` says.
    """
    return read_states(policy.hidden, sequences, policy.reading, policy.pad_id, policy.device)


def score(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    temperature: float,
    entropy_gradient: bool = False,
    *,
    one_pass: bool = True,
    whole_sequences: bool = False,
) -> tuple[Tensor, Tensor]:
    """logp_N and entropy_N (nats, float32) of the completion tokens, packed sequence after sequence.

    entropy_gradient: whether entropy_N carries a gradient, too
    one_pass:         without a gradient, give bit for bit what `one_pass` of `dinghai.ops.head` gives on these
                      sequences, where the head is one matrix; else, what this function gives with a gradient
    whole_sequences:  whether `one_pass` is given whole sequences
    """
    hidden_NH, target_N = read(policy, sequences)
    weight_VH = policy.head_weight
    if one_pass and weight_VH is not None and not torch.is_grad_enabled():
        ends = list(accumulate((len(s.completion_ids) for s in sequences), initial=0))
        cu_seqlens = torch.tensor(ends, device=policy.device) if whole_sequences else None
        return score_head(hidden_NH, weight_VH, target_N, temperature, cu_seqlens=cu_seqlens)
    return token_log_probs(hidden_NH, policy.to_logits, target_N, policy.vocabulary, temperature, entropy_gradient)
