"""Proves what each KL estimator is in expectation, exactly: all actions of a categorical are enumerated.

Run: pytest tests/objective/test_kl_estimators.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinghai.objective import KL_ESTIMATORS

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
THETA = torch.tensor([0.3, -1.2, 0.8, 0.1, -0.4], dtype=torch.float64)
LOGP_REF = torch.tensor([-0.9, 0.2, 0.5, -0.3, 0.6], dtype=torch.float64).log_softmax(0)


def expected_value(name: str) -> Tensor:
    logp = THETA.log_softmax(0)
    return (logp.exp() * KL_ESTIMATORS[name].value(logp - LOGP_REF)).sum()


def expected_gradient(name: str) -> Tensor:
    """E over π of weight · ∇ log π: what a loss gets from samples."""
    theta = THETA.clone().requires_grad_()
    logp = theta.log_softmax(0)
    weight = KL_ESTIMATORS[name].weight((logp - LOGP_REF).detach())
    (gradient,) = torch.autograd.grad((logp.detach().exp() * weight * logp).sum(), theta)
    return gradient


def gradient_of_kl(forward: bool) -> Tensor:
    theta = THETA.clone().requires_grad_()
    logp = theta.log_softmax(0)
    reverse = (logp.exp() * (logp - LOGP_REF)).sum()
    kl = (LOGP_REF.exp() * (LOGP_REF - logp)).sum() if forward else reverse
    return torch.autograd.grad(kl, theta)[0]


def test_values() -> None:
    kl = (THETA.softmax(0) * (THETA.log_softmax(0) - LOGP_REF)).sum()
    torch.testing.assert_close(expected_value("k1"), kl, **CLOSE)
    torch.testing.assert_close(expected_value("k3"), kl, **CLOSE)
    assert abs(expected_value("k2") - kl) > 1e-3  # biased


def test_gradients_in_a_loss() -> None:
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros(5, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(expected_gradient("k2"), gradient_of_kl(forward=False), **CLOSE)
    torch.testing.assert_close(expected_gradient("k3"), gradient_of_kl(forward=True), **CLOSE)
    assert (gradient_of_kl(forward=True) - gradient_of_kl(forward=False)).abs().max() > 0.01


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_weight_is_the_derivative_of_the_value(name: str) -> None:
    x = torch.linspace(-8, 8, 801, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(KL_ESTIMATORS[name].value(x).sum(), x)
    torch.testing.assert_close(KL_ESTIMATORS[name].weight(x.detach()), gradient, **CLOSE)


def test_formulas() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(KL_ESTIMATORS["k1"].value(x), x, **CLOSE)
    torch.testing.assert_close(KL_ESTIMATORS["k2"].value(x), x**2 / 2, **CLOSE)
    torch.testing.assert_close(KL_ESTIMATORS["k3"].value(x), torch.exp(-x) - 1 + x, **CLOSE)


def test_a_token_far_from_the_reference_is_still_pulled_back() -> None:
    """At log π_ref - log π = 7 and 25, where clamped versions have gradient 0."""
    weight = KL_ESTIMATORS["k3"].weight(torch.tensor([-7.0, -25.0], dtype=torch.float64))
    expected = 1 - torch.tensor([7.0, 25.0], dtype=torch.float64).exp()
    torch.testing.assert_close(weight, expected, **CLOSE)


def test_k3_keeps_its_digits_near_zero() -> None:
    x = torch.tensor([1e-3], dtype=torch.float32)
    assert KL_ESTIMATORS["k3"].value(x).item() == pytest.approx(5e-7, rel=1e-3)
