"""One chunk of the policy head in plain torch operations: for processors, and devices without kernels of their own.

Shapes: C rows of a chunk, R of them that carry a gradient, K rows of a block, H hidden size, V vocabulary.

With d = z/T - max(z/T), E = exp(d) and O the sum of E over all tokens but the target y:

    log p_y     = d_y - log(O + E_y)
    ∂ log p / ∂z = (onehot - p) / T = -E' / ((O + E_y)·T),   E' = E but for E'_y = -O

So E', left where the logits were, is the operand of both gradient products, and the coefficient and the normaliser of
a row scale the small operands: the products' [C, H] sides. O is summed without the target, so a token that is nearly
certain loses no digits to 1 - p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinghai.ops.chunk import Fold

# Elements of one chunk's logits (64 MiB in float32): large enough for full-speed matrix products, small beside a model.
CHUNK_ELEMENTS = 2**24
# Elements of a block of rows, over which the passes of a fold run one after the other while it is in the cache.
BLOCK_ELEMENTS = 2**18


class TorchKernel:
    """`ChunkKernel` in torch operations, in place. Products are in the dtype of the head; all sums are in float32."""

    def __init__(self) -> None:
        self._exp_CV = torch.empty(0, 0)  # E' of the latest fold

    def chunk_rows(self, vocabulary: int, dtype: torch.dtype) -> int:
        rows = max(1, CHUNK_ELEMENTS // vocabulary)
        return rows if rows < 32 else rows // 32 * 32

    def fold(self, hidden_CH: Tensor, weight_VH: Tensor, target_C: Tensor, temperature: float) -> Fold:
        rows, vocabulary = hidden_CH.shape[0], weight_VH.shape[0]
        if self._exp_CV.shape[0] < rows or self._exp_CV.shape[1:] != (vocabulary,):
            self._exp_CV = hidden_CH.new_empty(rows, vocabulary)
        exp_CV = self._exp_CV[:rows]
        torch.mm(hidden_CH, weight_VH.t(), out=exp_CV)
        logp_C, entropy_C = hidden_CH.new_empty(2, rows, dtype=torch.float32)
        self._scale_C = hidden_CH.new_empty(rows, dtype=torch.float32)
        block = max(1, BLOCK_ELEMENTS // vocabulary)
        for start in range(0, rows, block):
            part = slice(start, start + block)
            _fold_block(exp_CV[part], target_C[part], temperature, logp_C[part], entropy_C[part], self._scale_C[part])
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
        hidden_RH, scale_R = fold.hidden_CH, self._scale_C
        grad_RV = self._exp_CV[: hidden_RH.shape[0]]
        coefficient_R, entropy_coefficient_R = coefficient_C, entropy_coefficient_C
        logp_R, entropy_R, target_R = fold.logp_C, fold.entropy_C, fold.target_C
        if rows_R is not None:
            grad_RV = grad_RV[rows_R]
            hidden_RH, scale_R, coefficient_R = hidden_RH[rows_R], scale_R[rows_R], coefficient_R[rows_R]
            logp_R, entropy_R, target_R = logp_R[rows_R], entropy_R[rows_R], target_R[rows_R]
            if entropy_coefficient_R is not None:
                entropy_coefficient_R = entropy_coefficient_R[rows_R]
        factor_R1 = (-coefficient_R / scale_R / fold.temperature)[:, None]
        if entropy_coefficient_R is not None:
            p_RV = grad_RV.float() / scale_R[:, None]
            p_RV.scatter_(1, target_R[:, None], logp_R.exp()[:, None])
            grad_RV = -coefficient_R[:, None] * p_RV - entropy_coefficient_R[:, None] * (
                torch.xlogy(p_RV, p_RV) + p_RV * entropy_R[:, None]
            )
            grad_RV.scatter_add_(1, target_R[:, None], coefficient_R[:, None])
            grad_RV = grad_RV.to(hidden_RH.dtype)
            factor_R1 = torch.full_like(factor_R1, 1 / fold.temperature)
        grad_hidden_RH = (torch.mm(grad_RV, fold.weight_VH).float() * factor_R1).to(grad_hidden_CH.dtype)
        if rows_R is None:
            grad_hidden_CH.copy_(grad_hidden_RH)
        else:
            grad_hidden_CH.index_copy_(0, rows_R, grad_hidden_RH)
        if weight_grad_VH is not None:
            scaled_RH = (hidden_RH.float() * factor_R1).to(hidden_RH.dtype)
            if weight_grad_VH.dtype == hidden_RH.dtype:
                weight_grad_VH.addmm_(grad_RV.t(), scaled_RH)
            else:
                weight_grad_VH += torch.mm(grad_RV.t(), scaled_RH)


def _fold_block(
    logits_KV: Tensor, target_K: Tensor, temperature: float, logp_K: Tensor, entropy_K: Tensor, scale_K: Tensor
) -> None:
    """Replaces the logits by E', and writes log-probabilities, entropies and normalisers."""
    target_K1 = target_K[:, None]
    shifted_KV = logits_KV.float()
    if temperature != 1.0:
        shifted_KV = shifted_KV / temperature
    shifted_KV = shifted_KV - shifted_KV.amax(1, keepdim=True)
    shifted_target_K1 = shifted_KV.gather(1, target_K1)
    exp_KV = shifted_KV.exp()
    exp_target_K1 = shifted_target_K1.exp()
    moment_K1 = _sum_of_finite(shifted_KV.mul_(exp_KV))
    others_K1 = exp_KV.scatter_(1, target_K1, 0.0).sum(1, keepdim=True)
    exp_KV.scatter_(1, target_K1, -others_K1)
    # E_y is 1 where the target is the likeliest token; then log1p keeps the digits of what is left to the others.
    scale_K1 = others_K1 + exp_target_K1
    log_scale_K1 = torch.where(exp_target_K1 == 1, others_K1.log1p(), scale_K1.log())
    logp_K.copy_((shifted_target_K1 - log_scale_K1)[:, 0])
    entropy_K.copy_((log_scale_K1 - moment_K1 / scale_K1)[:, 0])
    scale_K.copy_(scale_K1[:, 0])
    logits_KV.copy_(exp_KV)


def _sum_of_finite(product_KV: Tensor) -> Tensor:
    """Σ E·d over each row. A token of probability zero adds nothing: its 0 · -inf must not become NaN."""
    sum_K1 = product_KV.sum(1, keepdim=True)
    return sum_K1 if not sum_K1.isnan().any() else product_KV.nansum(1, keepdim=True)
