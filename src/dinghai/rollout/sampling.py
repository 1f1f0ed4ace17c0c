"""Drawing tokens. Shapes: R rows, V vocabulary, K blocks of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from dinghai.rollout.engine import Sampling

# Tokens whose probabilities are summed before the distribution function is inverted: a cumulative sum runs over the
# blocks, and over the one block that a token lies in, never over the whole vocabulary.
BLOCK = 64


def sample(logits_RV: Tensor, uniform_R: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row, and its float32 log-probability under the distribution that it was drawn from.

    logits_RV may be overwritten. A row's token depends on its own logits and its own uniform number alone.
    """
    if sampling.is_truncated:
        logp_RV = sampler_log_probs(logits_RV, sampling)
        token_R = draw(logp_RV, uniform_R)
        return token_R, logp_RV.gather(1, token_R[:, None])[:, 0]
    mass_RV = logits_RV.float()
    if sampling.temperature != 1.0:
        mass_RV = mass_RV.div_(sampling.temperature)
    mass_RV.sub_(mass_RV.amax(-1, keepdim=True)).exp_()
    token_R, total_R = _invert(mass_RV, uniform_R)
    return token_R, mass_RV.gather(1, token_R[:, None])[:, 0].log() - total_R.log().float()


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
    """One token a row by inverting the distribution function at uniform_R in [0, 1)."""
    return _invert(logp_RV.exp(), uniform_R)[0]


def _invert(mass_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the share uniform_R of a row's mass is passed, and the row's whole mass in float64.

    First the block is found, then the token in it.
    """
    vocabulary = mass_RV.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    block_RK = mass_RV[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < vocabulary:
        block_RK = torch.cat((block_RK, mass_RV[:, whole:].sum(-1, keepdim=True)), 1)
    before_RK = torch.nn.functional.pad(block_RK.double().cumsum(-1), (1, 0))
    total_R1 = before_RK[:, -1:]
    threshold_R1 = uniform_R.double()[:, None] * total_R1
    block_R1 = _passed(before_RK[:, 1:], threshold_R1)
    inside_RT = block_R1 * BLOCK + torch.arange(BLOCK, device=mass_RV.device)
    mass_RT = mass_RV.gather(1, inside_RT.clamp_max(vocabulary - 1)).masked_fill(inside_RT >= vocabulary, 0.0)
    token_R1 = _passed(mass_RT.double().cumsum(-1), threshold_R1 - before_RK.gather(1, block_R1))
    return (block_R1 * BLOCK + token_R1)[:, 0], total_R1[:, 0]


def _passed(cumulative_RK: Tensor, threshold_R1: Tensor) -> Tensor:
    """The first index whose cumulative mass lies above the threshold.

    Rounding can lift a threshold to the total mass, where the search passes the end: that is the last index that has
    any. An index of zero mass is never found: what is before it does not lie beneath a threshold it lies above.
    """
    found_R1 = torch.searchsorted(cumulative_RK.contiguous(), threshold_R1, right=True)
    last_R1 = (cumulative_RK < cumulative_RK[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(found_R1, last_R1)
