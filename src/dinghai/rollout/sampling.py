"""Drawing tokens. Shapes: R rows, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from dinghai.rollout.engine import Sampling


def sampler_log_probs(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the distribution that tokens are drawn from; -inf where top-k or top-p cut a token off."""
    logp_RV = torch.log_softmax(logits_RV.float() / sampling.temperature, dim=-1)
    if not sampling.is_truncated:
        return logp_RV
    sorted_RV, order_RV = logp_RV.sort(dim=-1, descending=True, stable=True)
    keep_RV = torch.ones_like(sorted_RV, dtype=torch.bool)
    if 0 < sampling.top_k < logp_RV.shape[-1]:
        keep_RV[:, sampling.top_k :] = False
    if sampling.top_p < 1.0:
        # The nucleus is taken within the top-k. A token stays while the mass before it is short of top_p: the
        # likeliest one always does.
        mass_RV = torch.where(keep_RV, sorted_RV, -torch.inf).softmax(-1)
        keep_RV &= mass_RV.cumsum(-1) - mass_RV < sampling.top_p
    keep_RV = torch.zeros_like(keep_RV).scatter(1, order_RV, keep_RV)
    return torch.log_softmax(torch.where(keep_RV, logp_RV, -torch.inf), dim=-1)


def draw(logp_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """One token a row by inverting the distribution function at uniform_R in [0, 1).

    A row's token depends on its own uniform number alone, so it does not matter which rows are decoded together.
    """
    cumulative_RV = logp_RV.double().exp().cumsum(-1)
    threshold_R1 = uniform_R.double()[:, None] * cumulative_RV[:, -1:]
    token_R = torch.searchsorted(cumulative_RV, threshold_R1, right=True)[:, 0]
    # Rounding can lift a threshold to the total mass, where the search passes the end: that is the last token that has
    # any. A token of zero probability is never found: what is before it does not lie beneath a threshold it lies above.
    last_R = (cumulative_RV < cumulative_RV[:, -1:]).sum(-1)
    return torch.minimum(token_R, last_R)
