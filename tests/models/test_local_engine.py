"""Proves the mechanics of the local engine: each prompt is computed once, finished rows leave and others take their
place, every end token ends, the seed alone decides what is drawn, and weights of another precision are never stale.

Run: pytest tests/models/test_local_engine.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, END, load_tiny, random_prompts

from dinghai.policy.attention import current, install
from dinghai.policy.model import Policy
from dinghai.policy.scoring import TokenSequence, score
from dinghai.rollout.decode import DROP_SHARE, Decoder
from dinghai.rollout.engine import Completion, Sampling
from dinghai.rollout.graphs import Direct
from dinghai.rollout.local import LocalEngine
from dinghai.rollout.patterns import PromptAttention
from dinghai.rollout.sampling import sample


@pytest.fixture
def policy(tiny_folder: Callable[[str], Path]) -> Policy:
    return load_tiny(tiny_folder("llama"))


class Spy:
    """Notes what a policy is asked to read: the tokens of prompts, then one token of each row."""

    def __init__(self, policy: Policy) -> None:
        self.prefills: list[int] = []
        self.steps: list[int] = []
        policy.backbone.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        assert inputs["input_ids"].shape[0] == 1, "packed"
        reads_prompts = isinstance(current(), PromptAttention)
        (self.prefills if reads_prompts else self.steps).append(inputs["input_ids"].shape[1])


def tokens(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group] for group in groups]


def likeliest(policy: Policy, token: int, bias: float) -> None:
    """Makes a token likelier (or the likeliest) at every step."""
    logits_of = policy._head
    policy._head = lambda hidden: (
        logits_of(hidden) + bias * torch.nn.functional.one_hot(torch.tensor(token), policy.vocabulary)
    )


def test_each_prompt_is_computed_once_for_its_whole_group(policy: Policy) -> None:
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy)
    engine.generate(random_prompts(5, 9, 7), 8, Sampling(max_new_tokens=6), seed=0)
    assert spy.prefills == [5 + 9 + 7], "all at once, without padding"
    assert spy.steps[0] >= 24 - 2
    assert len(spy.steps) <= 5  # the last token drawn is not read


def test_batch_size_bounds_the_rows_and_free_slots_are_filled(policy: Policy) -> None:
    likeliest(policy, END, 3.0)
    prompts, sampling = random_prompts(5, 9, 7, 1, 4, 6), Sampling(max_new_tokens=12)
    whole = LocalEngine(policy, batch_size=64).generate(prompts, 4, sampling, seed=0)
    engine = LocalEngine(policy, batch_size=8)
    spy = Spy(policy)
    assert tokens(engine.generate(prompts, 4, sampling, seed=0)) == tokens(whole)
    assert max(spy.steps) <= 8
    assert len(spy.prefills) > 1
    assert sum(spy.prefills) == sum(map(len, prompts)), "each once, though the groups were cut"
    lengths = [len(c.token_ids) for group in whole for c in group]
    in_turn = sum(max(lengths[i : i + 8]) - 1 for i in range(0, 24, 8))
    assert len(spy.steps) < in_turn, "rows do not wait for the longest of those before them"


def test_a_group_larger_than_the_batch_is_cut(policy: Policy) -> None:
    prompts = random_prompts(5, 9)
    whole = LocalEngine(policy, batch_size=64).generate(prompts, 7, Sampling(max_new_tokens=6), seed=3)
    engine = LocalEngine(policy, batch_size=3)
    spy = Spy(policy)
    assert tokens(engine.generate(prompts, 7, Sampling(max_new_tokens=6), seed=3)) == tokens(whole)
    assert spy.prefills == [5, 9]
    assert max(spy.steps) == 3
    one_by_one = LocalEngine(policy, batch_size=1).generate(prompts, 7, Sampling(max_new_tokens=6), seed=3)
    assert tokens(one_by_one) == tokens(whole)


def test_prompts_are_shared_without_a_change(policy: Policy) -> None:
    """The completions of a prompt are those of as many prompts of the same text."""
    [prompt] = random_prompts(9)
    shared = LocalEngine(policy, 64).generate([prompt], 6, Sampling(max_new_tokens=8), seed=4)
    apart = LocalEngine(policy, 64).generate([prompt] * 6, 1, Sampling(max_new_tokens=8), seed=4)
    assert tokens(shared)[0] == [group[0] for group in tokens(apart)]
    for one, other in zip(shared[0], (group[0] for group in apart), strict=True):
        np.testing.assert_allclose(one.logp_sampler, other.logp_sampler, atol=1e-5)


def test_finished_rows_leave(policy: Policy) -> None:
    likeliest(policy, END, 4.0)  # ends early and often
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy)
    groups = engine.generate(random_prompts(5), 64, Sampling(max_new_tokens=40), seed=0)
    lengths = torch.tensor([len(c.token_ids) for c in groups[0]])
    assert lengths.unique().numel() > 5
    alive = [int((lengths > step + 1).sum()) for step in range(int(lengths.max()) - 1)]
    assert len(spy.steps) == len(alive), "decoding ends with the last row"
    assert all(living <= rows <= living / (1 - DROP_SHARE) for living, rows in zip(alive, spy.steps, strict=True))


def test_nothing_is_decoded_when_all_end_at_the_first_token(policy: Policy) -> None:
    likeliest(policy, END, 1e4)
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy)
    groups = engine.generate(random_prompts(5, 3), 4, Sampling(max_new_tokens=9), seed=0)
    assert tokens(groups) == [[[END]] * 4] * 2
    assert all(c.finished and c.logp_sampler.tolist() == [0.0] for group in groups for c in group)
    assert spy.steps == []


def test_one_new_token(policy: Policy) -> None:
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy)
    groups = engine.generate(random_prompts(5), 5, Sampling(max_new_tokens=1), seed=0)
    assert [len(c.token_ids) for c in groups[0]] == [1] * 5
    assert all(c.finished == (c.token_ids == [END]) for c in groups[0])
    assert spy.steps == []


def test_every_end_id_of_the_generation_config_ends(policy: Policy) -> None:
    """Chat models name several: the end of a turn and the end of the text."""
    policy.model.generation_config.eos_token_id = [10, 11]
    assert policy.end_ids == {10, 11, END}
    for token in (10, 11, END):
        likeliest(policy, token, 1e3)
        [completion] = LocalEngine(policy, 4).greedy(random_prompts(3), 5)
        assert completion.token_ids == [token]
        assert completion.finished
        likeliest(policy, token, -1e3)


def test_a_model_without_an_end_token_runs_to_the_limit(policy: Policy) -> None:
    policy.model.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = None
    assert policy.end_ids == set()
    [completion] = LocalEngine(policy, 4).greedy(random_prompts(3), 5)
    assert len(completion.token_ids) == 5
    assert not completion.finished


def test_the_seed_alone_decides(policy: Policy) -> None:
    prompts, sampling = random_prompts(5, 9), Sampling(max_new_tokens=6)
    engine = LocalEngine(policy, 64)
    once = engine.generate(prompts, 4, sampling, seed=1)
    torch.manual_seed(123)  # the global generator has no part in it
    assert tokens(engine.generate(prompts, 4, sampling, seed=1)) == tokens(once)
    assert tokens(engine.generate(prompts, 4, sampling, seed=2)) != tokens(once)
    assert len({tuple(c.token_ids) for c in once[0]}) > 1, "completions of one prompt differ"


@pytest.mark.parametrize("sampling", [Sampling(0.5), Sampling(top_k=5), Sampling(top_p=0.7), Sampling(1.7, 0.8, 20)])
def test_log_probs_are_of_the_distribution_drawn_from(policy: Policy, sampling: Sampling) -> None:
    """Untruncated they are scoring's at that temperature; truncated they are at least that, since mass is cut off."""
    prompts = random_prompts(5, 9)
    groups = LocalEngine(policy, 64).generate(prompts, 4, sampling, seed=1)
    sequences = [TokenSequence(p, c.token_ids) for p, g in zip(prompts, groups, strict=True) for c in g]
    with torch.no_grad():
        logp_N, _ = score(policy, sequences, sampling.temperature)
    reported_N = torch.cat([torch.from_numpy(c.logp_sampler) for g in groups for c in g])
    if sampling.is_truncated:
        assert (reported_N >= logp_N - 1e-4).all()
        assert (reported_N > logp_N + 1e-3).any()
    else:
        torch.testing.assert_close(reported_N, logp_N, atol=1e-4, rtol=0)


def test_greedy_is_certain(policy: Policy) -> None:
    for completion in LocalEngine(policy, 3).greedy(random_prompts(4, 2, 9, 5), 6):
        assert completion.logp_sampler.tolist() == [0.0] * len(completion.token_ids)
        assert completion.logp_sampler.dtype == "float32"


def test_no_gradient_and_no_trace_is_left(policy: Policy) -> None:
    """Decoding runs in inference mode; training goes on with ordinary tensors afterwards."""
    LocalEngine(policy, 8).generate(random_prompts(5), 4, Sampling(max_new_tokens=4), seed=0)
    assert not any(t.is_inference() for t in [*policy.model.parameters(), *policy.model.buffers()])
    logp_N, _ = score(policy, [TokenSequence([1, 2], [3, 4])], 1.0)
    logp_N.sum().backward()
    assert all(p.grad is not None for p in policy.trainable().values())


SLOTS = {"gpt2", "llama", "qwen2-tied", "qwen3", "gemma3", "mistral-sliding", "phi3", "olmo2", "gpt-neox", "granite"}
SLOTS |= {"cohere", "qwen3-moe"}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_architecture_that_cannot_be_decoded_in_slots_is_named(
    architecture: str, tiny_folder: Callable[[str], Path]
) -> None:
    notes = LocalEngine(load_tiny(tiny_folder(architecture)), 4).notes
    if architecture in SLOTS:
        assert notes == []
    else:
        [note] = notes
        assert note.startswith("rollout: completions are decoded through the cache of transformers, which is slower: ")
        assert "For" in note, "the class of the model"


def test_positions_that_depend_on_the_longest_row_are_not_decoded_in_slots(tiny_folder: Callable[[str], Path]) -> None:
    """Rows of other lengths would turn them, and a trial of short rows does not show it."""
    policy = load_tiny(tiny_folder("llama"))
    policy.model.config.rope_parameters = {**policy.model.config.rope_parameters, "rope_type": "dynamic"}
    [note] = LocalEngine(policy, 4).notes
    assert note.endswith("positions depend on the longest sequence of a batch (rope_type 'dynamic')")


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "mistral-sliding"])
@pytest.mark.parametrize("capacity", [3, 11, 64])
def test_steps_of_rounded_shapes_draw_the_same(
    architecture: str, capacity: int, tiny_folder: Callable[[str], Path]
) -> None:
    """As they are run on a GPU, where they are replayed: rows and columns that are too many are hidden, and rows that
    ended are noticed late."""
    policy = load_tiny(tiny_folder(architecture))
    assert install(policy.model) is None
    likeliest(policy, END, 3.0)
    prompts, uniform_RT = random_prompts(5, 19, 7, 1), torch.rand(17, 15, generator=torch.Generator().manual_seed(0))

    def choose(logits_nV: torch.Tensor, row_n: torch.Tensor, at_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sample(logits_nV, uniform_RT[row_n, at_n], Sampling())

    exact, rounded = (
        Decoder(policy, prompts, 4, capacity, 14, choose, runner).run()
        for runner in (Direct(), Direct(static=True, checked_every=4))
    )
    assert [c.token_ids for c in rounded] == [c.token_ids for c in exact]
    assert len({len(c.token_ids) for c in exact}) > 3
    for one, other in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(one.logp_sampler, other.logp_sampler, atol=1e-5)


def test_weights_of_another_precision_follow_the_policy(policy: Policy) -> None:
    """Samples are those of a policy in that precision, before and after an update; the policy itself keeps its own."""
    prompts, sampling = random_prompts(5, 9), Sampling(max_new_tokens=8)
    engine = LocalEngine(policy, 64, torch.bfloat16)
    for _ in range(2):
        rounded = policy.frozen_copy()
        for p in rounded.model.parameters():
            p.data = p.data.bfloat16()
        expected = LocalEngine(rounded, 64)
        assert tokens(engine.generate(prompts, 4, sampling, seed=1)) == tokens(
            expected.generate(prompts, 4, sampling, seed=1)
        )
        assert [c.token_ids for c in engine.greedy(prompts, 8)] == [c.token_ids for c in expected.greedy(prompts, 8)]
        assert all(p.dtype == torch.float32 for p in policy.model.parameters())
        with torch.no_grad():
            for p in policy.model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)


def test_a_copy_is_made_only_of_another_precision(policy: Policy) -> None:
    assert LocalEngine(policy, 4, torch.float32)._policy is policy
    assert LocalEngine(policy, 4, torch.bfloat16)._policy is not policy
