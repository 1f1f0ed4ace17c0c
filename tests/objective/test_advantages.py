"""Proves group advantages (exact zeros above all), generalised advantage estimation and whitening.

Run: pytest tests/objective/test_advantages.py
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective import gae, group_advantage, whiten

NAN = float("nan")


def f64(*x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_group_by_hand() -> None:
    """Two groups, interleaved, with ids in no order: [1, 0, 0] and [4, 2]."""
    reward, group = f64(1, 4, 0, 2, 0), torch.tensor([7, -3, 7, -3, 7])
    std_7 = math.sqrt((4 / 9 + 1 / 9 + 1 / 9) / 2)  # mean 1/3
    std_3 = math.sqrt((1 + 1) / 1)  # mean 3
    expected = f64(
        (2 / 3) / (std_7 + 1e-6), 1 / (std_3 + 1e-6), (-1 / 3) / (std_7 + 1e-6), -1 / (std_3 + 1e-6),
        (-1 / 3) / (std_7 + 1e-6),
    )  # fmt: skip
    torch.testing.assert_close(group_advantage(reward, group), expected, rtol=0, atol=1e-12)
    centred = f64(2 / 3, 1, -1 / 3, -1, -1 / 3)
    torch.testing.assert_close(group_advantage(reward, group, "none"), centred, rtol=0, atol=1e-12)
    batch_std = reward.std().item()  # of all five rewards
    torch.testing.assert_close(
        group_advantage(reward, group, "batch"), centred / (batch_std + 1e-6), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_are_exactly_zero(scale: Any, dtype: torch.dtype) -> None:
    """Also where the mean rounds: seven times 0.1 over 7 is not 0.1."""
    for value in (0.1, 0.7, 1 / 3, -1e-3, 1e6 + 0.1, 0.0):
        for size in (1, 2, 3, 6, 7, 8, 49):
            reward = torch.cat([torch.full((size,), value, dtype=torch.float64), f64(0.0, 1.0)]).to(dtype)
            group = torch.tensor([0] * size + [1, 1])
            advantage = group_advantage(reward, group, scale)
            assert torch.equal(advantage[:size], torch.zeros(size, dtype=advantage.dtype))
            assert advantage[-1] > 0 > advantage[-2]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.1, 0.5, 1.0, -2.0])), min_size=1, max_size=30),
    st.sampled_from(["group", "batch", "none"]),
)
def test_group_against_a_loop(completions: list[tuple[int, float]], scale: Any) -> None:
    group, reward = torch.tensor([g for g, _ in completions]), f64(*(r for _, r in completions))
    expected = torch.zeros_like(reward)
    for g in group.unique():
        rows = group == g
        centred = reward[rows] - reward[rows].mean()
        if len(set(reward[rows].tolist())) > 1:
            std = {"group": reward[rows].std() + 1e-6, "batch": reward.std() + 1e-6, "none": 1.0}[scale]
            expected[rows] = centred / std
    torch.testing.assert_close(group_advantage(reward, group, scale), expected, rtol=1e-9, atol=1e-12)


def test_bad_rewards_show_in_their_group_only() -> None:
    group = torch.tensor([0, 0, 1, 1])
    for bad in ([NAN, 1.0], [math.inf, 1.0], [math.inf, math.inf]):
        advantage = group_advantage(f64(*bad, 0.0, 1.0), group)
        assert not advantage[:2].isfinite().any()
        assert advantage[2:].isfinite().all()


def test_integer_rewards_and_none_at_all() -> None:
    assert group_advantage(torch.tensor([0, 1]), torch.tensor([5, 5]), "none").tolist() == [-0.5, 0.5]
    assert group_advantage(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize(
    "reward, group, scale, message",
    [
        (torch.zeros(2), torch.zeros(3, dtype=torch.long), "group", "one length"),
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long), "group", "vectors"),
        (torch.zeros(2), torch.zeros(2), "group", "must be integers"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.long), "std", "scale must be"),
    ],
)
def test_wrong_groups_are_named(reward: Tensor, group: Tensor, scale: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_advantage(reward, group, scale)


def test_gae_by_hand() -> None:
    """γ = 0.5, λ = 0.5, values 1, 2, 3 and a final reward of 4; the masked token between is stepped over."""
    reward, value = f64([0, NAN, 0, 4]), f64([1, NAN, 2, 3])
    mask = torch.tensor([[True, False, True, True]])
    # δ_3 = 4 + 0 - 3 = 1,  δ_2 = 0.5·3 - 2 = -0.5,  δ_0 = 0.5·2 - 1 = 0
    # A_3 = 1,  A_2 = -0.5 + 0.25·1 = -0.25,  A_0 = 0 + 0.25·-0.25 = -0.0625
    advantage, returns = gae(reward, value, mask, gamma=0.5, lam=0.5)
    assert advantage.tolist() == [[-0.0625, 0.0, -0.25, 1.0]]
    assert returns.tolist() == [[0.9375, 0.0, 1.75, 4.0]]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_gae_against_the_sum_of_its_definition(seed: int, rows: int, length: int, gamma: float, lam: float) -> None:
    """A_t = Σ_l (γλ)^l δ_{t+l}, row by row, over the tokens that count."""
    g = torch.Generator().manual_seed(seed)
    reward = torch.randn(rows, length, generator=g, dtype=torch.float64)
    value = torch.randn(rows, length, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=g) < 0.7
    advantage, returns = gae(
        reward.where(mask, torch.tensor(NAN)), value.where(mask, torch.tensor(NAN)), mask, gamma, lam
    )
    for b in range(rows):
        r, v = reward[b][mask[b]].tolist(), [*value[b][mask[b]].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))]
        torch.testing.assert_close(advantage[b][mask[b]], f64(*expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(returns[mask], (advantage + value)[mask])
    assert (advantage[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


def test_gae_limits() -> None:
    """λ = 1, γ = 1: reward to go minus value. λ = 0: the one-step error."""
    reward, value = f64([1, 2, 3]), f64([0.5, 0.25, 0.125])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert gae(reward, value, mask, 1.0, 1.0)[0].tolist() == [[5.5, 4.75, 2.875]]
    assert gae(reward, value, mask, 1.0, 0.0)[0].tolist() == [[0.75, 1.875, 2.875]]


def test_gae_has_no_gradient_and_computes_half_in_float32() -> None:
    value = torch.randn(2, 3, dtype=torch.bfloat16).requires_grad_()
    advantage, returns = gae(torch.ones(2, 3), value, torch.ones(2, 3, dtype=torch.bool), 1.0, 0.95)
    assert not advantage.requires_grad
    assert not returns.requires_grad
    assert advantage.dtype == torch.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"value_BT": torch.zeros(2, 4)}, "one shape"),
        ({"mask_BT": torch.ones(2, 3)}, "boolean"),
        ({"gamma": 1.5}, "must lie in"),
        ({"lam": NAN}, "must lie in"),
    ],
)
def test_wrong_gae_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "reward_BT": torch.zeros(2, 3),
        "value_BT": torch.zeros(2, 3),
        "mask_BT": torch.ones(2, 3, dtype=torch.bool),
        "gamma": 1.0,
        "lam": 1.0,
    }
    with pytest.raises(InputError, match=message):
        gae(**(arguments | changes))


def test_whiten() -> None:
    x = f64([1, 2, NAN], [3, math.inf, 6])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    white = whiten(x, mask)
    expected = (f64(1, 2, 3, 6) - 3) / (f64(1, 2, 3, 6).std() + 1e-6)
    torch.testing.assert_close(white[mask], expected, rtol=1e-12, atol=1e-12)
    assert white[~mask].tolist() == [0.0, 0.0]
    everywhere = torch.ones(3, dtype=torch.bool)
    assert whiten(f64(0.1, 0.1, 0.1), everywhere).tolist() == [0.0, 0.0, 0.0]
    assert whiten(f64(5.0, 1.0, 1.0), torch.tensor([True, False, False])).tolist() == [0.0, 0.0, 0.0]
    assert whiten(f64(5.0), torch.tensor([False])).tolist() == [0.0]
    with pytest.raises(InputError, match="boolean mask"):
        whiten(x, mask.double())
