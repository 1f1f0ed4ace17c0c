"""Proves the mechanics of the local engine: each prompt is computed once, finished rows leave, every end token ends,
and the seed alone decides what is drawn.

Run: pytest tests/models/test_local_engine.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import END, load_tiny, random_prompts
from torch import Tensor

from dinghai.policy.model import Policy
from dinghai.policy.scoring import TokenSequence, score
from dinghai.rollout.engine import Completion, Sampling
from dinghai.rollout.local import LocalEngine


@pytest.fixture
def policy(tiny_folder: Callable[[str], Path]) -> Policy:
    return load_tiny(tiny_folder("llama"))


class Spy:
    """Counts what a policy is asked to decode: (rows, new tokens a row, whether there was a cache)."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int, bool]] = []
        decode = policy.decode

        def spied(input_ids_RS: Tensor, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
            self.calls.append((*input_ids_RS.shape, cache is not None))
            return decode(input_ids_RS, cache, **inputs)

        monkeypatch.setattr(policy, "decode", spied)

    @property
    def prefills(self) -> list[tuple[int, int]]:
        return [(rows, width) for rows, width, cached in self.calls if not cached]

    @property
    def steps(self) -> list[int]:
        assert all(width == 1 for _, width, cached in self.calls if cached)
        return [rows for rows, _, cached in self.calls if cached]


def tokens(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[c.token_ids for c in group] for group in groups]


def likeliest(policy: Policy, token: int, bias: float) -> None:
    """Makes a token likelier (or the likeliest) at every step."""
    logits_of = policy._head
    policy._head = lambda hidden: (
        logits_of(hidden) + bias * torch.nn.functional.one_hot(torch.tensor(token), policy.vocabulary)
    )


def test_each_prompt_is_computed_once_for_its_whole_group(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy, monkeypatch)
    engine.generate(random_prompts(5, 9, 7), 8, Sampling(max_new_tokens=6), seed=0)
    assert spy.prefills == [(3, 9)]
    assert spy.steps[0] == 24
    assert len(spy.steps) <= 5  # the last token drawn is not read


def test_batch_size_bounds_the_rows(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(policy, batch_size=10)
    spy = Spy(policy, monkeypatch)
    engine.generate(random_prompts(5, 9, 7), 4, Sampling(max_new_tokens=3), seed=0)
    assert spy.prefills == [(2, 9), (1, 7)], "two groups of four, then one"
    assert max(spy.steps) == 8


def test_a_group_larger_than_the_batch_is_cut(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(5, 9)
    whole = LocalEngine(policy, batch_size=64).generate(prompts, 7, Sampling(max_new_tokens=6), seed=3)
    engine = LocalEngine(policy, batch_size=3)
    spy = Spy(policy, monkeypatch)
    assert tokens(engine.generate(prompts, 7, Sampling(max_new_tokens=6), seed=3)) == tokens(whole)
    assert spy.prefills == [(1, 5)] * 3 + [(1, 9)] * 3
    assert max(spy.steps) == 3


def test_finished_rows_leave(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    likeliest(policy, END, 4.0)  # ends early and often
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy, monkeypatch)
    groups = engine.generate(random_prompts(5), 64, Sampling(max_new_tokens=40), seed=0)
    lengths = torch.tensor([len(c.token_ids) for c in groups[0]])
    assert lengths.unique().numel() > 5
    alive = [int((lengths > step + 1).sum()) for step in range(int(lengths.max()) - 1)]
    assert len(spy.steps) == len(alive), "decoding ends with the last row"
    assert all(living <= rows <= living / (1 - 0.125) for living, rows in zip(alive, spy.steps, strict=True))


def test_nothing_is_decoded_when_all_end_at_the_first_token(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    likeliest(policy, END, 1e4)
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy, monkeypatch)
    groups = engine.generate(random_prompts(5, 3), 4, Sampling(max_new_tokens=9), seed=0)
    assert tokens(groups) == [[[END]] * 4] * 2
    assert all(c.finished and c.logp_sampler.tolist() == [0.0] for group in groups for c in group)
    assert spy.steps == []


def test_one_new_token(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(policy, batch_size=64)
    spy = Spy(policy, monkeypatch)
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
