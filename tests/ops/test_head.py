"""Proves the policy head against autograd: log-probs, entropy and their gradients, in one piece and in chunks, and that
chunks keep no logits.

Run: pytest tests/ops/test_head.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dinghai.ops import head
from dinghai.ops.head import token_log_probs

N, H, V = 37, 16, 53


def make(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[Tensor, nn.Linear, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(N, H, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    linear = nn.Linear(H, V, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(V, H, generator=g))
        if bias:
            linear.bias.copy_(torch.randn(V, generator=g))
    return hidden_NH, linear, torch.randint(0, V, (N,), generator=g)


def reference(hidden_NH: Tensor, linear: nn.Linear, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    distribution = torch.distributions.Categorical(logits=linear(hidden_NH) / temperature)
    return distribution.log_prob(target_N), distribution.entropy()


@pytest.fixture(params=[1, 5 * V, 2**24], ids=["a row at a time", "five rows", "one piece"])
def chunk_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", request.param)
    return request.param


@pytest.mark.usefixtures("chunk_elements")
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.8])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_values_and_gradients(temperature: float, entropy_gradient: bool) -> None:
    weight_N, coefficient_N = torch.randn(2, N, generator=torch.Generator().manual_seed(9))
    results = []
    for ours in (True, False):
        hidden_NH, linear, target_N = make()
        if ours:
            logp_N, entropy_N = token_log_probs(hidden_NH, linear, target_N, V, temperature, entropy_gradient)
            assert entropy_N.requires_grad == entropy_gradient
        else:
            logp_N, entropy_N = reference(hidden_NH, linear, target_N, temperature)
        loss = (weight_N * logp_N).sum() + ((coefficient_N * entropy_N).sum() if entropy_gradient else 0)
        loss.backward()
        results.append((logp_N.detach(), entropy_N.detach(), hidden_NH.grad, linear.weight.grad, linear.bias.grad))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("chunk_elements")
def test_chunks_do_not_change_a_bit_of_a_row() -> None:
    """Row by row the same arithmetic: where the product does not round otherwise, neither does the rest."""
    logits_NV = make()[1](make()[0]).detach()
    whole = head._chunk(logits_NV, torch.arange(N) % V, lambda x: x, 0.9, False)
    cut = token_log_probs(logits_NV, lambda x: x, torch.arange(N) % V, V, 0.9)
    assert torch.equal(whole[0], cut[0])
    assert torch.equal(whole[1], cut[1])


@pytest.mark.usefixtures("chunk_elements")
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_impossible_tokens_give_no_nan(entropy_gradient: bool) -> None:
    logits_NV = torch.randn(N, V, generator=torch.Generator().manual_seed(0))
    logits_NV[:, 10:40] = -torch.inf
    logits_NV.requires_grad_()
    logp_N, entropy_N = token_log_probs(logits_NV, lambda x: x, torch.arange(N) % 10, V, 0.7, entropy_gradient)
    (logp_N.sum() + (entropy_N.sum() if entropy_gradient else 0)).backward()
    possible_NV = torch.cat([logits_NV[:, :10], logits_NV[:, 40:]], 1).detach() / 0.7
    torch.testing.assert_close(entropy_N.detach(), torch.distributions.Categorical(logits=possible_NV).entropy())
    assert logits_NV.grad is not None
    assert logits_NV.grad.isfinite().all()
    assert (logits_NV.grad[:, 10:40] == 0).all()


def test_an_impossible_target_is_minus_infinity() -> None:
    logits_1V = torch.tensor([[0.0, -torch.inf]])
    logp_N, entropy_N = token_log_probs(logits_1V, lambda x: x, torch.tensor([1]), 2, 1.0)
    assert logp_N.item() == -torch.inf
    assert entropy_N.item() == 0.0


@pytest.mark.usefixtures("chunk_elements")
def test_bfloat16_is_computed_in_float32() -> None:
    hidden_NH, linear, target_N = make(torch.bfloat16)
    logp_N, entropy_N = token_log_probs(hidden_NH, linear, target_N, V, 0.8, True)
    assert logp_N.dtype == entropy_N.dtype == torch.float32
    right = torch.distributions.Categorical(logits=linear(hidden_NH).float() / 0.8)
    torch.testing.assert_close(logp_N, right.log_prob(target_N), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy_N, right.entropy(), atol=1e-5, rtol=1e-5)
    (logp_N.sum() + entropy_N.sum()).backward()
    assert hidden_NH.grad is not None
    assert hidden_NH.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_chunks_keep_no_logits_for_the_backward_pass(entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def measured(chunk_rows: int) -> int:
        """The largest tensor that autograd saves."""
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk_rows * V)
        kept.clear()
        hidden_NH, linear, target_N = make()
        with torch.autograd.graph.saved_tensors_hooks(_noted(kept), lambda x: x):
            logp_N, entropy_N = token_log_probs(hidden_NH, linear, target_N, V, 1.0, entropy_gradient)
        (logp_N.sum() + (entropy_N.sum() if entropy_gradient else 0)).backward()
        return max(kept)

    assert measured(N) == N * V
    assert measured(5) <= H * V, "only hidden states and the head's own weight"


def _noted(kept: list[int]) -> object:
    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    return note


def test_without_gradient_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 5 * V)
    hidden_NH, linear, target_N = make()
    with torch.no_grad():
        logp_N, entropy_N = token_log_probs(hidden_NH, linear, target_N, V, 1.0, entropy_gradient=True)
    assert not logp_N.requires_grad
    assert not entropy_N.requires_grad
    torch.testing.assert_close(logp_N, reference(hidden_NH, linear, target_N, 1.0)[0].detach())


def test_log_probs_of_a_flat_and_of_a_sharp_distribution() -> None:
    flat, sharp = torch.zeros(1, V), torch.zeros(1, V)
    sharp[0, 3] = 200.0
    logp_N, entropy_N = token_log_probs(torch.cat([flat, sharp]), lambda x: x, torch.tensor([3, 3]), V, 1.0)
    log_v = torch.tensor(float(V)).log()
    torch.testing.assert_close(logp_N, torch.stack([-log_v, torch.tensor(0.0)]))
    torch.testing.assert_close(entropy_N, torch.stack([log_v, torch.tensor(0.0)]))
