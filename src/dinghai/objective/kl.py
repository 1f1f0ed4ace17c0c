"""Estimators of the divergence from the reference policy, per token, with their gradients in closed form.

Shapes: N tokens, or any other. x = log π_new(token) - log π_ref(token), in nats, for tokens drawn from π_new.

An estimator is a pair: its value, and the coefficient of ∇log π_new in the value's gradient. The two uses differ.

As a *value* (in the reward, in a metric), in expectation over π_new:
    k1 and k3 are KL(π_new || π_ref) exactly, k3 without k1's negative samples; k2 is biased.
As a *loss*, in expectation over π_new:
    k1  has no gradient at all (E[∇log π] = 0): useless in a loss, right in the reward.
    k2  has the gradient of the reverse KL(π_new || π_ref).
    k3  has the gradient of the forward KL(π_ref || π_new). It is GRPO's definition (arXiv 2402.03300, equation 4).

Source: Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html; for the gradients,
arXiv 2506.09477. Nothing is clamped: a clamp's gradient is zero exactly where the policy has to be pulled back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KLEstimatorName = Literal["k1", "k2", "k3"]


def k1(x: Tensor) -> Tensor:
    """x. Unbiased as a value, of either sign."""
    return x


def k1_weight(x: Tensor) -> Tensor:
    """d k1/dx = 1."""
    return torch.ones_like(x)


def k2(x: Tensor) -> Tensor:
    """x²/2. Never negative; biased as a value, unbiased for the gradient of the reverse KL."""
    return 0.5 * x * x


def k2_weight(x: Tensor) -> Tensor:
    """d k2/dx = x."""
    return x


def k3(x: Tensor) -> Tensor:
    """exp(-x) - 1 + x. Never negative, unbiased as a value."""
    return torch.expm1(-x) + x  # expm1 keeps the digits that exp(-x) - 1 loses near x = 0


def k3_weight(x: Tensor) -> Tensor:
    """d k3/dx = 1 - exp(-x)."""
    return -torch.expm1(-x)


@dataclass(frozen=True)
class KLEstimator:
    """A function pair of x = log π_new - log π_ref."""

    value: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


KL_ESTIMATORS: dict[str, KLEstimator] = {
    "k1": KLEstimator(k1, k1_weight),
    "k2": KLEstimator(k2, k2_weight),
    "k3": KLEstimator(k3, k3_weight),
}
