"""Estimators of KL(new || ref) from the sampled token, and whose gradient each has when it is put in the loss.

    x = log pi_ref(token) - log pi_new(token)

Schulman, "Approximating KL divergence" (2020); gradients: 2506.09477, 2510.01555. Values are not clamped: a clamp has no
gradient just where the policy has gone furthest.

    estimator  value           d value / d log pi_new   in expectation the gradient of
    k1         -x              1                        nothing: it is zero, and only adds noise
    k2         x^2 / 2         -x                       KL(new || ref), the reverse KL
    k3         e^x - 1 - x     1 - e^x                  KL(ref || new), the forward KL; GRPO is defined with it

As a penalty on the reward k1 is the unbiased one; k3 there has an unbiased value but a biased gradient.

Shapes: one value a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dinghai.errors import InputError


class Estimator(NamedTuple):
    """A function pair of x = logp_ref - logp_new: the value, and the closed-form coefficient of grad log pi_new."""

    value: Callable[[Tensor], Tensor]
    coefficient: Callable[[Tensor], Tensor]


KL_ESTIMATORS = {
    "k1": Estimator(lambda x: -x, torch.ones_like),
    "k2": Estimator(lambda x: x * x / 2, lambda x: -x),
    "k3": Estimator(lambda x: torch.expm1(x) - x, lambda x: -torch.expm1(x)),
}


def get_estimator(name: str) -> Estimator:
    """The estimator of that name, or InputError."""
    if name not in KL_ESTIMATORS:
        raise InputError(f"there is no KL estimator {name!r}; there are {', '.join(KL_ESTIMATORS)}")
    return KL_ESTIMATORS[name]


def kl_estimate(name: str, logp_new: Tensor, logp_ref: Tensor) -> Tensor:
    """The estimator's value for each token, nats."""
    return get_estimator(name).value(logp_ref - logp_new)
