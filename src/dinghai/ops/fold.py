"""One chunk of the policy head in plain torch operations: for processors, and devices without kernels of their own.

Shapes: C rows of a chunk, R of them that carry a gradient, K rows of a block, U tokens of the vocabulary taken at a
time, H hidden size, V vocabulary.

With the logits z divided by the temperature T, m their largest, y the target, E = exp(z - m), and O the sum of E over
all tokens but y:

    log p_y  = z_y - m - log(O + E_y)            entropy = log(O + E_y) - Σ E·(z - m) / (O + E_y)
    ∂ log p_y / ∂z_j = [j = y] - p_j             ∂ entropy / ∂z_j = -p_j · (log p_j + entropy)

O leaves the target out, so that a nearly certain token loses no digits to 1 - p.

A fold leaves the logits as they are, and `add_gradients` turns those of the rows that carry a gradient into their
derivatives, rounded once. Both run in place, block by block: on a CPU, the first write to a fresh [C, V] tensor takes
longer than the arithmetic, and all passes over a block but the first find it in the cache.

In bfloat16 the products are those of the processor, which add up in float32 and round what they return. So logits
carry bfloat16's rounding, as in every head that multiplies in bfloat16 on a CPU: torch offers no product there that
returns the float32 sums, and multiplying in float32 takes twice the time. All that follows is float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dinghai.ops.chunk import Fold

# The logits of a chunk fit a last-level cache, unless that makes so few rows that its products would be slow.
CHUNK_ELEMENTS = 2**21
CHUNK_ROW_BYTES = 128 * 4  # of one column of a chunk, at least: 128 rows of float32, 256 of bfloat16
# Logits over which the passes run one after the other.
BLOCK_ELEMENTS = 2**16
# Tokens of the vocabulary in one product of those that read or write [V, H] piece by piece.
VOCABULARY_BLOCK = 1024
# exp of anything less is 0 in float32, so that a log-probability may be cut off here where it meets its probability.
LEAST_LOGP = -104.0


class TorchKernel:
    """`ChunkKernel` in torch operations."""

    def __init__(self) -> None:
        self._logits_CV = torch.empty(0, 0)  # of the latest fold, divided by the temperature

    def chunk_rows(self, vocabulary: int, dtype: torch.dtype) -> int:
        return max(CHUNK_ELEMENTS // vocabulary, CHUNK_ROW_BYTES // dtype.itemsize, 1)

    def fold(self, hidden_CH: Tensor, weight_VH: Tensor, target_C: Tensor, temperature: float) -> Fold:
        rows, vocabulary = hidden_CH.shape[0], weight_VH.shape[0]
        if self._logits_CV.shape[0] < rows:
            self._logits_CV = hidden_CH.new_empty(rows, vocabulary)
        logits_CV = self._logits_CV[:rows]
        nothing = hidden_CH.new_zeros(1, 1)
        for weight_UH, logits_CU in _pieces(weight_VH, logits_CV):
            # The temperature divides inside the product, before it rounds.
            torch.addmm(nothing, hidden_CH, weight_UH.t(), beta=0, alpha=1 / temperature, out=logits_CU)
        logp_C, entropy_C = hidden_CH.new_empty(2, rows, dtype=torch.float32)
        for own in _blocks(rows, vocabulary):
            logp_C[own], entropy_C[own] = _fold_block(logits_CV[own].float(), target_C[own])
        return Fold(hidden_CH, weight_VH, target_C, temperature, logp_C, entropy_C)

    def add_gradients(
        self,
        fold: Fold,
        rows_R: Tensor | None,
        coefficient_C: Tensor,
        entropy_coefficient_C: Tensor | None,
        grad_hidden_CH: Tensor,
        weight_grad_VH: Tensor | None,
    ) -> None:
        hidden_RH = _take(fold.hidden_CH, rows_R)
        grad_RV = self._logits_CV[: hidden_RH.shape[0]]
        for own in _blocks(*grad_RV.shape):
            # A row moves up or stays, since rows_R ascends: no logits are overwritten before they are read.
            rows_K = own if rows_R is None else rows_R[own]
            grad_KV = _grad_block(
                self._logits_CV[rows_K],
                fold.target_C[rows_K],
                fold.logp_C[rows_K],
                fold.entropy_C[rows_K],
                coefficient_C[rows_K],
                None if entropy_coefficient_C is None else entropy_coefficient_C[rows_K],
            )
            torch.div(grad_KV, fold.temperature, out=grad_RV[own])
        if rows_R is None:
            torch.mm(grad_RV, fold.weight_VH, out=grad_hidden_CH)
        else:
            grad_hidden_CH.index_copy_(0, rows_R, torch.mm(grad_RV, fold.weight_VH))
        if weight_grad_VH is not None:
            _add_product(weight_grad_VH, grad_RV, hidden_RH)


def _fold_block(logits_KV: Tensor, target_K: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets and entropies."""
    target_K1 = target_K[:, None]
    shifted_KV = logits_KV - logits_KV.amax(1, keepdim=True)
    shifted_target_K1 = shifted_KV.gather(1, target_K1)
    exp_target_K1 = shifted_target_K1.exp()
    exp_KV = shifted_KV.exp()
    moment_K1 = shifted_KV.mul_(exp_KV).sum(1, keepdim=True)
    others_K1 = exp_KV.scatter_(1, target_K1, 0.0).sum(1, keepdim=True)
    if (moment_K1.isnan() & ~others_K1.isnan()).any():  # a token of probability zero: its 0 · -inf adds nothing
        moment_K1 = shifted_KV.nansum(1, keepdim=True)
    # E_y is 1 where the target is the likeliest token; then log1p keeps the digits of what is left to the others.
    sum_K1 = others_K1 + exp_target_K1
    log_sum_K1 = torch.where(exp_target_K1 == 1, others_K1.log1p(), sum_K1.log())
    return (shifted_target_K1 - log_sum_K1)[:, 0], (log_sum_K1 - moment_K1 / sum_K1)[:, 0]


def _grad_block(
    logits_KV: Tensor,
    target_K: Tensor,
    logp_K: Tensor,
    entropy_K: Tensor,
    coefficient_K: Tensor,
    entropy_coefficient_K: Tensor | None,
) -> Tensor:
    """The derivatives of coefficient · log p_y + entropy coefficient · entropy with respect to the logits, float32."""
    target_K1, coefficient_K1, logp_K1 = target_K[:, None], coefficient_K[:, None], logp_K[:, None]
    target_grad_K1 = coefficient_K1 * -logp_K1.expm1()
    if entropy_coefficient_K is None:
        grad_KV = torch.softmax(logits_KV, 1, dtype=torch.float32).mul_(-coefficient_K1)
    else:
        entropy_K1, entropy_coefficient_K1 = entropy_K[:, None], entropy_coefficient_K[:, None]
        logp_KV = torch.log_softmax(logits_KV, 1, dtype=torch.float32)
        p_KV = logp_KV.exp()
        # The entropy's part is of the target as of every other token.
        grad_KV = logp_KV.clamp_min_(LEAST_LOGP).add_(entropy_K1).mul_(p_KV).mul_(-entropy_coefficient_K1)
        target_grad_K1 = target_grad_K1 + grad_KV.gather(1, target_K1)
        grad_KV -= p_KV.mul_(coefficient_K1)
    return grad_KV.scatter_(1, target_K1, target_grad_K1)


def _take(x: Tensor, rows_R: Tensor | None) -> Tensor:
    return x if rows_R is None else x.index_select(0, rows_R)


def _blocks(rows: int, vocabulary: int) -> list[slice]:
    """Rows of which one pass over the logits leaves them in the cache for the next."""
    size = max(1, BLOCK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _pieces(matrix_VH: Tensor, matrix_CV: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same tokens of the vocabulary in a matrix [V, H] and in one [C, V], piece by piece."""
    return zip(matrix_VH.split(VOCABULARY_BLOCK), matrix_CV.split(VOCABULARY_BLOCK, dim=1), strict=True)


def _add_product(weight_grad_VH: Tensor, grad_RV: Tensor, hidden_RH: Tensor) -> None:
    """weight_grad += grad^T @ hidden, in float32."""
    if grad_RV.dtype == weight_grad_VH.dtype:
        weight_grad_VH.addmm_(grad_RV.t(), hidden_RH)
        return
    product_UH = hidden_RH.new_empty(min(VOCABULARY_BLOCK, grad_RV.shape[1]), hidden_RH.shape[1])
    for weight_grad_UH, grad_RU in _pieces(weight_grad_VH, grad_RV):
        own_UH = product_UH[: weight_grad_UH.shape[0]]
        torch.mm(grad_RU.t(), hidden_RH, out=own_UH)
        weight_grad_UH += own_UH
