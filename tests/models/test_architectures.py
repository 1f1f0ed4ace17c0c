"""Proves, for twenty architectures, that scoring gives the log-probs of the model's own logits, that what the engine
reports is what scoring gives, that its greedy tokens are those of the library's own `generate`, and that a completion
does not depend on which others it is decoded with.

Run: pytest tests/models/test_architectures.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import (
    CONFIGS,
    END,
    PAD,
    load_tiny,
    random_prompts,
    random_sequences,
    reference_log_probs,
    save_tiny,
)
from transformers import BertConfig, RwkvConfig

from dinghai.errors import InputError
from dinghai.policy.critic import Critic
from dinghai.policy.model import Policy
from dinghai.policy.scoring import TokenSequence, score
from dinghai.rollout.engine import Completion, Sampling
from dinghai.rollout.local import LocalEngine

# More than a linear layer between hidden state and logits: a soft cap, a scale, or no backbone that the library names.
NOT_FACTORED = {"gemma2", "granite", "cohere", "llama4"}
# Recurrences in another order of the sums.
LOOSE = {"mamba": 5e-4, "falcon-mamba": 5e-4}


@pytest.fixture(params=CONFIGS)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def policy(architecture: str, tiny_folder: Callable[[str], Path]) -> Policy:
    return load_tiny(tiny_folder(architecture))


def test_scoring_and_engine_agree_with_the_library(policy: Policy, architecture: str) -> None:
    tolerance = LOOSE.get(architecture, 1e-5)
    assert policy.factored == (architecture not in NOT_FACTORED)

    # Scoring, of uneven lengths and so with padding on the right, against the model's own logits.
    sequences = random_sequences((5, 7), (1, 12), (20, 3), (9, 1), (30, 14))
    with torch.no_grad():
        logp_N, _ = score(policy, sequences, temperature=0.7)
    torch.testing.assert_close(logp_N, reference_log_probs(policy.model, sequences, 0.7), atol=tolerance, rtol=0)

    for prompts in (random_prompts(6, 6, 6), random_prompts(3, 17, 1, 9)):
        groups = LocalEngine(policy, batch_size=64).generate(prompts, 3, Sampling(max_new_tokens=16), seed=5)

        # The engine's log-probs are those of scoring.
        completions = [c for group in groups for c in group]
        sampled = [TokenSequence(p, c.token_ids) for p, group in zip(prompts, groups, strict=True) for c in group]
        with torch.no_grad():
            logp_N, _ = score(policy, sampled, temperature=1.0)
        reported_N = torch.cat([torch.from_numpy(c.logp_sampler) for c in completions])
        torch.testing.assert_close(reported_N, logp_N, atol=max(tolerance, 1e-4), rtol=0)
        assert -reported_N.mean() > 0.1, "the model is certain: nothing was proved"

        # Another batch size, and other company, give the same tokens.
        alone = LocalEngine(policy, batch_size=2).generate(prompts, 3, Sampling(max_new_tokens=16), seed=5)
        assert [c.token_ids for group in alone for c in group] == [c.token_ids for c in completions]

        # Greedy decoding is the library's own.
        for prompt, completion in zip(prompts, LocalEngine(policy, 64).greedy(prompts, 12), strict=True):
            assert completion.token_ids == _library_greedy(policy, prompt, 12)


def _library_greedy(policy: Policy, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = policy.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "cohere", "mamba"])
def test_a_critic_stands_on_every_backbone(name: str, tiny_folder: Callable[[str], Path]) -> None:
    """It starts at 0, its gradient reaches its backbone, and the policy's weights have no part in it."""
    policy = load_tiny(tiny_folder(name))
    critic = Critic(policy)
    sequences = random_sequences((4, 3), (2, 6))
    assert torch.equal(critic.values(sequences), torch.zeros(9))
    with torch.no_grad():
        critic.head.weight.normal_()
    critic.values(sequences).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.backbone.parameters())
    assert all(p.grad is None for p in policy.model.parameters())


def test_a_critic_needs_a_backbone(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="Llama4ForCausalLM gives no hidden states"):
        Critic(load_tiny(tiny_folder("llama4")))


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(InputError, match="BertLMHeadModel is not causal"):
        load_tiny(save_tiny(tmp_path, config))


def test_a_model_without_a_cache_to_share_is_refused(tmp_path: Path) -> None:
    config = RwkvConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, context_length=64)
    policy = load_tiny(save_tiny(tmp_path, config))
    with pytest.raises(InputError, match="RwkvForCausalLM keeps no cache"):
        LocalEngine(policy, 4)


def test_a_model_whose_cache_misleads_is_refused(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left padding that a model does not hide would give log-probs of a text that nobody wrote."""
    policy = load_tiny(tiny_folder("bloom"))
    decode = Policy.decode
    monkeypatch.setattr(Policy, "decode", lambda self, ids, cache, **inputs: decode(self, ids, cache))
    with pytest.raises(InputError, match="BloomForCausalLM computes other logits token by token"):
        LocalEngine(policy, 4)


def test_completions_say_whether_they_ended(tiny_folder: Callable[[str], Path]) -> None:
    groups = LocalEngine(load_tiny(tiny_folder("gpt2")), 64).generate(
        random_prompts(4), 200, Sampling(max_new_tokens=20), seed=0
    )
    ended = [c for c in groups[0] if c.finished]
    assert 0 < len(ended) < 200
    assert all(_is_whole(c, 20) for c in groups[0])


def _is_whole(completion: Completion, limit: int) -> bool:
    ids = completion.token_ids
    ends = [i for i, token in enumerate(ids) if token == END]
    return ends == ([len(ids) - 1] if completion.finished else []) and (completion.finished or len(ids) == limit)
