"""The policy head: hidden states x head -> log-probability and entropy of the chosen tokens, never all the logits.

Shapes: N tokens of a micro-batch, H hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Elements of one chunk's logits (64 MiB in float32): large enough for full-speed matrix products, small beside a model.
CHUNK_ELEMENTS = 2**24


def token_log_probs(
    hidden_NH: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    target_N: Tensor,
    vocabulary: int,
    temperature: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and entropy of each distribution, in nats, float32.

    hidden_NH:        what `to_logits` takes, one row a token
    to_logits:        [C, H] -> [C, V]
    target_N:         token ids
    temperature:      logits are divided by it: the distribution that is sampled from
    entropy_gradient: whether entropy_N carries a gradient (only an entropy bonus needs it, and it costs a pass)

    Rows are taken in chunks of at most CHUNK_ELEMENTS logits; where there is more than one chunk and a gradient is
    wanted, each chunk's logits are recomputed in the backward pass instead of being kept.
    """
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    if hidden_NH.shape[0] <= rows:
        return _chunk(hidden_NH, target_N, to_logits, temperature, entropy_gradient)
    pieces = []
    for hidden_CH, target_C in zip(hidden_NH.split(rows), target_N.split(rows), strict=True):
        if torch.is_grad_enabled():
            piece = checkpoint(
                _chunk, hidden_CH, target_C, to_logits, temperature, entropy_gradient, use_reentrant=False
            )
        else:
            piece = _chunk(hidden_CH, target_C, to_logits, temperature, entropy_gradient)
        pieces.append(piece)
    logp, entropy = zip(*pieces, strict=True)
    return torch.cat(logp), torch.cat(entropy)


def _chunk(
    hidden_CH: Tensor,
    target_C: Tensor,
    to_logits: Callable[[Tensor], Tensor],
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits_CV = to_logits(hidden_CH).float()
    if temperature != 1.0:
        logits_CV = logits_CV / temperature
    logp_CV = torch.log_softmax(logits_CV, dim=-1)
    logp_C = logp_CV.gather(1, target_C[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # A token with zero probability has a log-probability of -inf and adds nothing: 0 * -inf must not become NaN.
        entropy_C = -(logp_CV.exp() * logp_CV.clamp_min(torch.finfo(logp_CV.dtype).min)).sum(-1)
    return logp_C, entropy_C
