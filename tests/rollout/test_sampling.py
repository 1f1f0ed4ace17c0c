"""Proves how tokens are drawn: the distribution after temperature, top-k and top-p is the library's own, and what is
drawn from it follows it and never leaves it.

Run: pytest tests/rollout/test_sampling.py
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dinghai.rollout.engine import Sampling
from dinghai.rollout.sampling import BLOCK, draw, sample, sampler_log_probs

ALMOST_ONE = 1 - 2**-24  # the largest float32 below 1


def random_logits(rows: int = 50, vocabulary: int = 97, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 97, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.35, 1e-6])
def test_distribution_is_the_librarys(temperature: float, top_k: int, top_p: float) -> None:
    logits_RV = random_logits()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected_RV = warpers(torch.zeros(1, 1), logits_RV).log_softmax(-1)
    logp_RV = sampler_log_probs(logits_RV, Sampling(temperature, top_p, top_k))
    assert torch.equal(logp_RV.isinf(), expected_RV.isinf()), "another support"
    torch.testing.assert_close(logp_RV, expected_RV, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(logp_RV.exp().sum(-1), torch.ones(50))


def test_bfloat16_logits_are_computed_in_float32() -> None:
    logits_RV = random_logits().bfloat16()
    logp_RV = sampler_log_probs(logits_RV, Sampling(0.7))
    assert logp_RV.dtype == torch.float32
    torch.testing.assert_close(logp_RV, (logits_RV.float() / 0.7).log_softmax(-1))


def test_equal_logits_are_cut_to_exactly_k() -> None:
    """Where logits tie, the first k are kept: the support has a known size."""
    logp_RV = sampler_log_probs(torch.zeros(1, 10), Sampling(top_k=3))
    torch.testing.assert_close(logp_RV[0, :3], torch.full((3,), -math.log(3)))
    assert logp_RV[0, 3:].isinf().all()


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 8 tokens and 200,000 draws; beyond 24.3 the chance is one in a thousand."""
    p_V = torch.tensor([0.4, 0.0, 0.25, 0.15, 0.1, 0.05, 0.0, 0.03, 0.015, 0.005])
    n = 200_000
    uniform_R = torch.rand(n, generator=torch.Generator().manual_seed(1))
    counts_V = draw(p_V.log().expand(n, -1), uniform_R).bincount(minlength=10)
    possible_V = p_V > 0
    assert (counts_V[~possible_V] == 0).all()
    expected_V = n * p_V[possible_V]
    assert ((counts_V[possible_V] - expected_V) ** 2 / expected_V).sum() < 24.3


@settings(deadline=None, max_examples=200)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-12, 1e-4, 0.3, 1.0, 7.0]), min_size=2, max_size=40),
    uniform=st.sampled_from([0.0, 2**-24, 0.25, 0.5, 0.75, 1 - 2**-10, ALMOST_ONE]),
)
def test_never_a_token_of_probability_zero(weights: list[float], uniform: float) -> None:
    if not sum(weights):
        weights[0] = 1.0
    logp_1V = torch.tensor([weights]).log().log_softmax(-1)
    [token] = draw(logp_1V, torch.tensor([uniform])).tolist()
    assert weights[token] > 0


def test_extremes_are_the_first_and_the_last_possible_token() -> None:
    logp_1V = torch.tensor([[0.0, 0.2, 0.5, 0.3, 0.0]]).log()
    assert draw(logp_1V, torch.tensor([0.0])).item() == 1
    assert draw(logp_1V, torch.tensor([ALMOST_ONE])).item() == 3


def test_extremes_at_a_real_vocabulary() -> None:
    """150,000 tokens of which rounding could lose the last."""
    logp_RV = random_logits(4, 150_000).log_softmax(-1)
    assert draw(logp_RV, torch.full((4,), ALMOST_ONE)).max() < 150_000
    assert (draw(logp_RV, torch.zeros(4)) == 0).all()


def test_a_row_is_drawn_from_its_own_number_alone() -> None:
    logp_RV, uniform_R = random_logits().log_softmax(-1), torch.rand(50)
    together_R = draw(logp_RV, uniform_R)
    assert together_R.tolist() == [draw(logp_RV[i : i + 1], uniform_R[i : i + 1]).item() for i in range(50)]


@pytest.mark.parametrize("sampling", [Sampling(top_k=4), Sampling(top_p=0.5), Sampling(0.5, 0.6, 10)])
def test_draws_stay_in_the_truncated_support(sampling: Sampling) -> None:
    logp_RV = sampler_log_probs(random_logits(2000), sampling)
    token_R = draw(logp_RV, torch.rand(2000, generator=torch.Generator().manual_seed(0)))
    assert logp_RV.gather(1, token_R[:, None]).isfinite().all()


@pytest.mark.parametrize("vocabulary", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 7])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_fused_draw_is_the_inverse_of_the_distribution_function(vocabulary: int, temperature: float) -> None:
    """Against a search in the whole cumulative sum in float64; within rounding of a step it may fall either way."""
    logits_RV, n = random_logits(1, vocabulary), 4000
    uniform_R = torch.rand(n, generator=torch.Generator().manual_seed(2))
    token_R, logp_R = sample(logits_RV.repeat(n, 1), uniform_R, Sampling(temperature))
    exact_V = (logits_RV[0].double() / temperature).log_softmax(-1)
    cumulative_V = exact_V.exp().cumsum(-1)
    expected_R = torch.searchsorted(cumulative_V, uniform_R.double(), right=True).clamp_max(vocabulary - 1)
    near_R = (cumulative_V - uniform_R.double()[:, None]).abs().amin(-1) < 1e-6
    assert torch.equal(token_R[~near_R], expected_R[~near_R])
    assert near_R.float().mean() < 0.05 or vocabulary == 1
    torch.testing.assert_close(logp_R, exact_V[token_R].float(), atol=2e-6, rtol=0)


def test_fused_draws_follow_the_softmax() -> None:
    """Chi-square of 200,000 draws from three blocks of tokens, in ten groups; beyond 27.9: one in a thousand."""
    logits_V = random_logits(1, 3 * BLOCK - 5)[0]
    n = 200_000
    uniform_R = torch.rand(n, generator=torch.Generator().manual_seed(3))
    token_R = torch.cat([sample(logits_V.repeat(len(u), 1), u, Sampling())[0] for u in uniform_R.split(20_000)])
    p_V = logits_V.softmax(-1)
    group_V = torch.randperm(len(p_V), generator=torch.Generator().manual_seed(4)) % 10
    expected_G = n * torch.zeros(10).index_add(0, group_V, p_V)
    counts_G = group_V[token_R].bincount(minlength=10)
    assert ((counts_G - expected_G) ** 2 / expected_G).sum() < 27.9


def test_bfloat16_logits_are_drawn_from_in_float32() -> None:
    logits_RV, uniform_R = random_logits().bfloat16(), torch.rand(50)
    token_R, logp_R = sample(logits_RV.clone(), uniform_R, Sampling(0.7))
    assert logp_R.dtype == torch.float32
    assert torch.equal(token_R, sample(logits_RV.float(), uniform_R, Sampling(0.7))[0])
    torch.testing.assert_close(logp_R, (logits_RV.float() / 0.7).log_softmax(-1).gather(1, token_R[:, None])[:, 0])
