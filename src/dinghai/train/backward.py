"""Backward passes through the policy: from a loss of log-probs to the gradients of its weights.

Shapes: N tokens of a micro-batch, packed sequence after sequence, H hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dinghai.ops.head import LossOf, one_pass
from dinghai.policy.model import Policy
from dinghai.policy.scoring import TokenSequence, read, score
from dinghai.train.learner import gradient_buffer


def backward_in_one_pass(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    temperature: float,
    loss_of: LossOf,
    *,
    pieces: Tensor | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of a loss to the policy's; the head's come with its log-probs, chunk by chunk.

    loss_of: (rows, logp_C, entropy_C) -> their share of the loss, for rows of the N tokens
    pieces:  where the pieces begin and end, [pieces + 1], of which `loss_of` wants whole ones; None: any rows will do
    entropy_gradient: whether the loss depends on the entropies

    Returns logp_N and entropy_N, without a gradient.
    """
    weight_VH = policy.head_weight
    assert weight_VH is not None
    hidden_NH, target_N = read(policy, sequences)
    out = one_pass(
        hidden_NH.detach(),
        weight_VH.detach(),
        target_N,
        temperature,
        loss_of,
        weight_grad_VH=gradient_buffer(weight_VH),
        cu_seqlens=pieces,
        entropy_gradient=entropy_gradient,
    )
    if hidden_NH.requires_grad:
        hidden_NH.backward(out.grad_hidden_NH)
    return out.logp_N, out.entropy_N


def backward_by_autograd(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    temperature: float,
    loss_of: LossOf,
    *,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same by autograd alone, for any head; `loss_of` is called once, on all tokens."""
    logp_N, entropy_N = score(policy, sequences, temperature, entropy_gradient)
    loss_of(slice(0, logp_N.numel()), logp_N, entropy_N).backward()
    return logp_N.detach(), entropy_N.detach()
