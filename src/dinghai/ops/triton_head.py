"""One chunk of the policy head on CUDA: matrix products by cuBLAS, all that lies between them by Triton.

Shapes: C rows of a chunk, R of them that carry a gradient, K columns of a block, H hidden size, V vocabulary.

Why it is built so. Of the time of a pass nearly all is its three products, and cuBLAS is the fastest there is for
them, so the rest must cost little beside them and must not slow them down:

- Logits are made a block of columns at a time, in float32 out of the accumulators, in a scratch of C x 8192: small
  enough to stay in the second-level cache until `fold_block` has read it. Nothing is rounded before it is summed.
- What is kept of them is E' (see kernels), in the dtype of the head: the operand of both gradient products. The
  coefficient and the normaliser of a row scale the products' small sides, so no pass over [C, V] follows.
- The head's gradient is added up in float32 in the product itself, which reads and writes [V, H] once a chunk. That is
  the price of small chunks, so a chunk has as many rows as CHUNK_BYTES holds.
- Rows without a coefficient leave by filling their places from the last rows, in place: half a pass over what remains.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from dinghai.errors import InputError
from dinghai.ops.chunk import Fold
from dinghai.ops.triton_kernels import close_rows, fold_block, move_rows, weigh_with_entropy

# Memory of one chunk, its E' and the scratch together: 1024 rows of a vocabulary of 152k in bfloat16.
CHUNK_BYTES = 330 * 2**20
# Rows of a chunk at most: beyond them a product gains nothing, and the scratch is no longer small.
MOST_ROWS = 8192
# Columns of a block of logits, a power of two: one program holds a row of it in registers.
BLOCK_COLUMNS = 8192
# E' is stored relative to a logit of the row's first block; it may grow by e^40 before the row is scaled again. Its
# sums over a vocabulary and its products with heads and hidden states then stay far from the end of float32's range.
LARGEST_EXPONENT = 40.0
# Columns that one program moves or weighs.
PART_COLUMNS = 4096
# 16 elements of a row in a thread, in at most 64 registers: two programs share a multiprocessor.
FOLD_OPTIONS = {"num_warps": 16, "maxnreg": 64, "enable_fp_fusion": True}
OPTIONS = {"enable_fp_fusion": True}
_ALIGNMENT = 64  # elements that a row of E' is rounded up to, so that rows begin where products load fastest


class TritonKernel:
    """`ChunkKernel` for CUDA tensors, float32 or bfloat16.

    Log-probabilities and entropies come from float32 accumulators and are summed in float32. The gradient products
    are in the dtype of the head with float32 accumulators; that of the head is added up in float32.
    """

    def __init__(self) -> None:
        self._exp_CV = torch.empty(0, 0)  # E' of the latest fold, in rows that may be longer than V
        self._scratch = torch.empty(0)  # float32: a block of logits, and the small sides of the gradient products later

    def chunk_rows(self, vocabulary: int, dtype: torch.dtype) -> int:
        row_bytes = _aligned(vocabulary) * dtype.itemsize + _block_columns(vocabulary) * 4
        rows = min(MOST_ROWS, max(1, CHUNK_BYTES // row_bytes))
        return rows if rows < 128 else rows // 128 * 128

    def fold(self, hidden_CH: Tensor, weight_VH: Tensor, target_C: Tensor, temperature: float) -> Fold:
        if hidden_CH.dtype not in (torch.float32, torch.bfloat16):
            raise InputError(f"the policy head works in float32 or bfloat16 on CUDA, not in {hidden_CH.dtype}")
        rows, vocabulary = hidden_CH.shape[0], weight_VH.shape[0]
        block = _block_columns(vocabulary)
        target_C = target_C.contiguous()
        self._reserve(hidden_CH, vocabulary, block)
        logp_C, entropy_C, self._scale_C = hidden_CH.new_empty(3, rows, dtype=torch.float32)
        state_5C = hidden_CH.new_empty(5, rows, dtype=torch.float32)
        with torch.cuda.device_of(hidden_CH):
            for start in range(0, vocabulary, block):
                weight_KH = weight_VH[start : start + block]
                logits_CK = self._scratch[: rows * weight_KH.shape[0]].view(rows, -1)
                multiply(hidden_CH, weight_KH.t(), logits_CK)
                fold_block[(rows,)](
                    logits_CK,
                    target_C,
                    state_5C,
                    self._exp_CV,
                    self._exp_CV.stride(0),
                    rows,
                    logits_CK.shape[1],
                    start,
                    1 / temperature,
                    FIRST=start == 0,
                    BLOCK=block,
                    LARGEST_EXPONENT=LARGEST_EXPONENT,
                    **FOLD_OPTIONS,
                )
            close_rows[(triton.cdiv(rows, 128),)](
                target_C,
                state_5C,
                self._exp_CV,
                self._exp_CV.stride(0),
                logp_C,
                entropy_C,
                self._scale_C,
                rows,
                BLOCK=128,
                **OPTIONS,
            )
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
        hidden_CH, vocabulary = fold.hidden_CH, fold.weight_VH.shape[0]
        with torch.cuda.device_of(hidden_CH):
            source_R = None if rows_R is None else self._compact(rows_R, hidden_CH.shape[0], vocabulary)
            rows = hidden_CH.shape[0] if source_R is None else source_R.shape[0]
            grad_RV = self._exp_CV[:rows, :vocabulary]
            if entropy_coefficient_C is None:
                factor_R = _take(-coefficient_C / self._scale_C, source_R) / fold.temperature
            else:
                self._weigh(fold, source_R, coefficient_C, entropy_coefficient_C, grad_RV)
                factor_R = torch.full_like(self._scale_C[:rows], 1 / fold.temperature)
            product_RH, scaled_RH = self._small_sides(rows, hidden_CH)
            multiply(grad_RV, fold.weight_VH, product_RH)
            torch.mul(product_RH, factor_R[:, None], out=scaled_RH)
            if source_R is None:
                grad_hidden_CH.copy_(scaled_RH)
            else:
                grad_hidden_CH.index_copy_(0, source_R, scaled_RH)
            if weight_grad_VH is not None:
                if source_R is not None:
                    hidden_CH = torch.index_select(hidden_CH, 0, source_R, out=scaled_RH)
                torch.mul(hidden_CH, factor_R[:, None], out=scaled_RH)
                add_product(weight_grad_VH, grad_RV.t(), scaled_RH)

    def _reserve(self, hidden_CH: Tensor, vocabulary: int, block: int) -> None:
        rows, hidden = hidden_CH.shape
        held, columns = self._exp_CV.shape
        if held < rows or columns != _aligned(vocabulary) or self._exp_CV.dtype != hidden_CH.dtype:
            self._exp_CV = torch.empty(0, 0)  # let go first: the two together would be twice the memory of a chunk
            self._exp_CV = hidden_CH.new_empty(rows, _aligned(vocabulary))
        elements = rows * max(block, 2 * hidden)
        if self._scratch.numel() < elements:
            self._scratch = torch.empty(0)
            self._scratch = hidden_CH.new_empty(elements, dtype=torch.float32)

    def _small_sides(self, rows: int, hidden_CH: Tensor) -> tuple[Tensor, Tensor]:
        """[R, H] twice, in the scratch that held logits: float32, and in the dtype of the head."""
        elements = rows * hidden_CH.shape[1]
        product_RH = self._scratch[:elements].view(rows, -1)
        scaled_RH = self._scratch[elements:].view(hidden_CH.dtype)[:elements].view(rows, -1)
        return product_RH, scaled_RH

    def _compact(self, rows_R: Tensor, rows: int, vocabulary: int) -> Tensor:
        """Brings the rows `rows_R` of E' to the front, in place; returns which row stands at each place, [R].

        Rows that are there already stay. The k-th free place takes the k-th of the rows behind: sources and places do
        not overlap, so all move at once. Nothing here waits for the device.
        """
        kept = rows_R.shape[0]
        place_R = torch.arange(kept, device=rows_R.device)
        active_C = torch.zeros(rows, dtype=torch.bool, device=rows_R.device)
        active_C[rows_R] = True
        active_R = active_C[:kept]
        in_front = active_R.sum()
        free_before_R = place_R - active_R.cumsum(0)  # at a free place: how many places before it are free
        behind_R = rows_R[(in_front + free_before_R).clamp(max=kept - 1)]
        source_R = torch.where(active_R, place_R, behind_R)
        move_rows[(kept, triton.cdiv(vocabulary, PART_COLUMNS))](
            self._exp_CV, self._exp_CV.stride(0), source_R, vocabulary, BLOCK=PART_COLUMNS, **OPTIONS
        )
        return source_R

    def _weigh(
        self,
        fold: Fold,
        source_R: Tensor | None,
        coefficient_C: Tensor,
        entropy_coefficient_C: Tensor,
        grad_RV: Tensor,
    ) -> None:
        rows, vocabulary = grad_RV.shape
        columns_C = (fold.target_C, fold.logp_C, fold.entropy_C, self._scale_C, coefficient_C, entropy_coefficient_C)
        columns_R = [_take(column_C, source_R).contiguous() for column_C in columns_C]
        weigh_with_entropy[(rows, triton.cdiv(vocabulary, PART_COLUMNS))](
            grad_RV, grad_RV.stride(0), *columns_R, vocabulary, BLOCK=PART_COLUMNS, **OPTIONS
        )


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b with float32 accumulators and a float32 result. Processors have it for float32 operands only."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, added within the product, in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _take(values_C: Tensor, rows_R: Tensor | None) -> Tensor:
    return values_C if rows_R is None else values_C.index_select(0, rows_R)


def _aligned(columns: int) -> int:
    return triton.cdiv(columns, _ALIGNMENT) * _ALIGNMENT


def _block_columns(vocabulary: int) -> int:
    return min(BLOCK_COLUMNS, triton.next_power_of_2(max(16, vocabulary)))
