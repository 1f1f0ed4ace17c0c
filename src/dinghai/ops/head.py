"""The policy head: hidden states x head -> log-probability and entropy of the chosen tokens, never all the logits.

Shapes: N tokens of a micro-batch, H hidden size, V vocabulary, C rows of one chunk, B sequences.

The weight that a rule puts on a token is known in closed form as soon as its log-probability is, so one pass makes
logits, log-probabilities, the loss and both gradients, chunk by chunk: `one_pass`. Nothing of size [N, V] is kept, no
logits are made twice, and rows of zero weight leave before the gradient products. `score_head` is the same pass,
stopped after the fold. `token_log_probs` is the plain path through autograd, for heads that are not one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dinghai.errors import InputError
from dinghai.ops.chunk import ChunkKernel, Fold
from dinghai.ops.fold import TorchKernel

__all__ = ["ChunkKernel", "Fold", "LossOf", "OnePass", "one_pass", "score_head", "token_log_probs"]

# Elements of one chunk's logits (64 MiB in float32): large enough for full-speed matrix products, small beside a model.
CHUNK_ELEMENTS = 2**24

# (rows, logp_C, entropy_C) -> their share of the loss that is minimised, a scalar; rows: a slice of the N tokens.
LossOf = Callable[[slice, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OnePass:
    """What `one_pass` returns; nothing carries a gradient.

    loss:           sum of the chunks' shares, float64 scalar
    logp_N:         log-probabilities of the targets, in nats, float32
    entropy_N:      entropies of the distributions, in nats, float32
    grad_hidden_NH: gradient of the loss with respect to the hidden states, in their dtype
    """

    loss: Tensor
    logp_N: Tensor
    entropy_N: Tensor
    grad_hidden_NH: Tensor


@torch.no_grad()
def one_pass(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    temperature: float,
    loss_of: LossOf,
    *,
    weight_grad_VH: Tensor | None,
    cu_seqlens: Tensor | None = None,
    entropy_gradient: bool = False,
) -> OnePass:
    """Log-probabilities, entropies, loss and gradients in one pass over the head.

    hidden_NH:        last hidden states, one row a token, in the dtype of the head
    weight_VH:        the head: logits are hidden @ weight^T
    target_N:         token ids
    temperature:      logits are divided by it: the distribution that is sampled from
    loss_of:          the loss of a part of the rows, as a function of leaves logp_C and entropy_C; what autograd gives
                      with respect to them is the weight of each row, whatever rule made it
    weight_grad_VH:   float32 buffer that the head's gradient is added to; None: the head is frozen
    cu_seqlens:       [B+1] int64 if `loss_of` wants whole sequences: where they begin and end. A sequence that fills
                      more than a chunk has its logits made twice. None: rows are independent
    entropy_gradient: whether the loss depends on entropy_C as well

    Where chunks begin and end depends on shapes and cu_seqlens alone, so that scoring the same rows rounds alike.

    Raises:
        InputError: shapes or dtypes do not fit together.
    """
    _check(hidden_NH, weight_VH, target_N, weight_grad_VH)
    kernel = _kernel_for(hidden_NH)
    logp_N, entropy_N = hidden_NH.new_empty(2, hidden_NH.shape[0], dtype=torch.float32)
    grad_hidden_NH = torch.zeros_like(hidden_NH)
    loss = hidden_NH.new_zeros((), dtype=torch.float64)
    rows = kernel.chunk_rows(weight_VH.shape[0], weight_VH.dtype)
    for span in _spans(hidden_NH.shape[0], rows, cu_seqlens):
        chunks = _cut(span, rows)
        for chunk in chunks:
            fold = kernel.fold(hidden_NH[chunk], weight_VH, target_N[chunk], temperature)
            logp_N[chunk], entropy_N[chunk] = fold.logp_C, fold.entropy_C
        share, coefficients = _differentiate(loss_of, span, logp_N[span], entropy_N[span], entropy_gradient)
        loss += share
        # The last chunk's fold is still there; those before it, if the span is longer than a chunk, are made again.
        for chunk in reversed(chunks):
            own = slice(chunk.start - span.start, chunk.stop - span.start)
            coefficient_C, entropy_coefficient_C = (None if c is None else c[own] for c in coefficients)
            assert coefficient_C is not None
            rows_R = _rows_with_gradient(coefficient_C, entropy_coefficient_C)
            if rows_R.numel() == 0:
                continue
            if chunk is not chunks[-1]:
                fold = kernel.fold(hidden_NH[chunk], weight_VH, target_N[chunk], temperature)
            some_R = rows_R if rows_R.numel() < coefficient_C.numel() else None
            kernel.add_gradients(
                fold, some_R, coefficient_C, entropy_coefficient_C, grad_hidden_NH[chunk], weight_grad_VH
            )
    return OnePass(loss, logp_N, entropy_N, grad_hidden_NH)


@torch.no_grad()
def score_head(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    temperature: float,
    *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """logp_N and entropy_N (nats, float32) without gradients: bit for bit those of `one_pass` on the same arguments.

    cu_seqlens, if `one_pass` is given one, makes the chunks begin and end where they do there.

    Raises:
        InputError: shapes or dtypes do not fit together.
    """
    _check(hidden_NH, weight_VH, target_N, None)
    kernel = _kernel_for(hidden_NH)
    logp_N, entropy_N = hidden_NH.new_empty(2, hidden_NH.shape[0], dtype=torch.float32)
    rows = kernel.chunk_rows(weight_VH.shape[0], weight_VH.dtype)
    for span in _spans(hidden_NH.shape[0], rows, cu_seqlens):
        for chunk in _cut(span, rows):
            fold = kernel.fold(hidden_NH[chunk], weight_VH, target_N[chunk], temperature)
            logp_N[chunk], entropy_N[chunk] = fold.logp_C, fold.entropy_C
    return logp_N, entropy_N


def _kernel_for(hidden_NH: Tensor) -> ChunkKernel:
    if hidden_NH.is_cuda:
        from dinghai.ops.triton_head import TritonKernel  # Triton is only there where CUDA is

        return TritonKernel()
    return TorchKernel()


def _spans(tokens: int, rows: int, cu_seqlens: Tensor | None) -> Iterator[slice]:
    """The parts of the N tokens that `loss_of` is called on: chunks of any rows, or of as many sequences as fit."""
    if cu_seqlens is None:
        yield from _cut(slice(0, tokens), rows)
        return
    start = stop = 0
    for end in cu_seqlens.tolist()[1:]:
        if end - start > rows and stop > start:
            yield slice(start, stop)
            start = stop
        stop = end
    if stop > start:
        yield slice(start, stop)


def _cut(span: slice, rows: int) -> list[slice]:
    """As few chunks as there can be, of nearly equal size."""
    length = span.stop - span.start
    size = -(-length // max(1, -(-length // rows)))
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, max(1, size))]


def _differentiate(
    loss_of: LossOf, span: slice, logp_C: Tensor, entropy_C: Tensor, entropy_gradient: bool
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """The loss of a span, and its derivatives with respect to log-probabilities and, if wanted, entropies."""
    logp_C = logp_C.clone().requires_grad_()
    entropy_C = entropy_C.clone().requires_grad_(entropy_gradient)
    with torch.enable_grad():
        loss = loss_of(span, logp_C, entropy_C)
    zeros_C = torch.zeros_like(logp_C)
    if not loss.requires_grad:
        return loss, (zeros_C, zeros_C if entropy_gradient else None)
    leaves = [logp_C, entropy_C] if entropy_gradient else [logp_C]
    grads = [zeros_C if g is None else g for g in torch.autograd.grad(loss, leaves, allow_unused=True)]
    return loss.detach(), (grads[0], grads[1] if entropy_gradient else None)


def _rows_with_gradient(coefficient_C: Tensor, entropy_coefficient_C: Tensor | None) -> Tensor:
    """Which rows take part in the gradient products. NaN does: an error must not be dropped."""
    active_C = coefficient_C != 0
    if entropy_coefficient_C is not None:
        active_C |= entropy_coefficient_C != 0
    return active_C.nonzero()[:, 0]


def _check(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor, weight_grad_VH: Tensor | None) -> None:
    if hidden_NH.dim() != 2 or weight_VH.dim() != 2 or hidden_NH.shape[1] != weight_VH.shape[1]:
        raise InputError(
            f"hidden states must be [N, H] and the head [V, H]; got {list(hidden_NH.shape)} and {list(weight_VH.shape)}"
        )
    if hidden_NH.dtype != weight_VH.dtype:
        raise InputError(f"hidden states are {hidden_NH.dtype}, but the head is {weight_VH.dtype}: convert one of them")
    if target_N.shape != hidden_NH.shape[:1]:
        raise InputError(f"there are {hidden_NH.shape[0]} hidden states, but targets of shape {list(target_N.shape)}")
    if weight_grad_VH is not None and (
        weight_grad_VH.shape != weight_VH.shape or weight_grad_VH.dtype != torch.float32
    ):
        raise InputError(
            f"the head's gradient is added up in float32, of the head's shape {list(weight_VH.shape)}; "
            f"got {weight_grad_VH.dtype} {list(weight_grad_VH.shape)}"
        )


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
