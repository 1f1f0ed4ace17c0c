"""Proves where packed tokens lie, which positions predict which tokens, and that micro-batches count what is read.

Run: pytest tests/policy/test_packing.py
"""

from __future__ import annotations

import pytest
import torch

from dinghai.policy.reading import Reading
from dinghai.policy.scoring import micro_batches
from dinghai.policy.sequences import Span, TokenSequence, pack

PACKED, SHARED = Reading(packed=True, shared_prompts=False), Reading(packed=True, shared_prompts=True)
CPU = torch.device("cpu")
LENGTHS = ((3, (4, 1, 6)), (2, (2, 2)), (5, (9,)), (3, (1,)))  # of each prompt, and of its completions
SEQUENCES = [
    TokenSequence([p] * length, [9] * r) for p, (length, completions) in enumerate(LENGTHS) for r in completions
]


def test_a_shared_prompt_lies_in_the_row_once() -> None:
    """And its completions, whatever the order asked for, follow it in place, one behind the other."""
    sequences = [
        TokenSequence([1, 2, 3], [10, 11]),
        TokenSequence([4], [20, 21, 22]),
        TokenSequence([1, 2, 3], [30]),
        TokenSequence([1, 2, 3], [40, 41, 42]),
    ]
    packed = pack(sequences, shared_prompts=True, device=CPU)
    assert packed.input_ids_M.tolist() == [1, 2, 3, 4, 10, 40, 41, 20, 21]
    assert packed.position_ids_M.tolist() == [0, 1, 2, 0, 3, 3, 4, 1, 2]
    assert packed.prompts == [Span(0, 3), Span(3, 1)]
    assert packed.completions == [Span(4, 1), Span(5, 0), Span(5, 2), Span(7, 2)]
    assert packed.prompt_of == [0, 0, 0, 1]
    assert packed.target_N.tolist() == [10, 11, 20, 21, 22, 30, 40, 41, 42]
    assert packed.predict_N.tolist() == [2, 4, 3, 7, 8, 2, 2, 5, 6]


def test_without_sharing_each_sequence_has_its_prompt() -> None:
    packed = pack([TokenSequence([1, 2], [3, 4]), TokenSequence([1, 2], [5])], shared_prompts=False, device=CPU)
    assert packed.input_ids_M.tolist() == [1, 2, 1, 2, 3]
    assert packed.position_ids_M.tolist() == [0, 1, 0, 1, 2]
    assert packed.predict_N.tolist() == [1, 4, 3]


def positions_read(chosen: list[int], reading: Reading) -> int:
    return len(pack([SEQUENCES[i] for i in chosen], reading.shared_prompts, CPU).input_ids_M)


@pytest.mark.parametrize("reading", [PACKED, SHARED])
def test_a_micro_batch_reads_no_more_than_its_budget(reading: Reading) -> None:
    everything = list(range(len(SEQUENCES)))
    for budget in (1, 5, 8, 12, 13, 20, 31, 100):
        batches = micro_batches(SEQUENCES, everything, budget, reading)
        assert sorted(i for batch in batches for i in batch) == everything
        for batch in batches:
            assert positions_read(batch, reading) <= budget or len(batch) == 1
        assert batches == micro_batches(SEQUENCES, everything[::-1], budget, reading), "the order of asking has a say"
    assert len(micro_batches(SEQUENCES, everything, 100, reading)) == 1


def test_the_budget_is_used() -> None:
    """What is read of all sequences is a budget that holds them all, and one less does not."""
    everything = list(range(len(SEQUENCES)))
    for reading in (PACKED, SHARED):
        whole = positions_read(everything, reading)
        assert len(micro_batches(SEQUENCES, everything, whole, reading)) == 1
        assert len(micro_batches(SEQUENCES, everything, whole - 1, reading)) == 2
    assert positions_read(everything, SHARED) < positions_read(everything, PACKED)


def test_completions_of_a_prompt_stay_together() -> None:
    """A group is cut only where it exceeds the budget by itself."""
    group_of = [SEQUENCES[i].prompt_ids for i in range(len(SEQUENCES))]
    for budget in (12, 15, 20):  # the largest group reads 3 + 3 + 0 + 5 positions, or 5 + 8
        batches = micro_batches(SEQUENCES, list(range(len(SEQUENCES))), budget, SHARED)
        for ids in (group_of[0], group_of[3]):
            assert sum(any(group_of[i] == ids for i in batch) for batch in batches) == 1, budget
    cut = micro_batches(SEQUENCES, [0, 1, 2], 8, SHARED)
    assert cut == [[0, 1], [2]]
