"""The Triton kernels of the policy head: what happens to logits between the matrix products.

Shapes: C rows of a chunk, R rows of them that carry a gradient, V vocabulary, K columns of one block of logits.

Each program owns whole rows, or parts of rows that no other program touches, and sums in a fixed order: no atomics, so
results are deterministic. Offsets of rows are 64-bit, since C·V may pass 2^31.

One row is folded block by block; between blocks its state is kept in `state_5C`, float32:

    m   the largest logit so far                    z are logits divided by the temperature, y is the target
    O   Σ exp(z - m) over all tokens but y
    U   Σ exp(z - m)·(z - m) over the same
    z_y the target's logit, -inf until its block is reached
    s   what was subtracted from the logits of this row before they were stored as E = exp(z - s)
"""

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit(do_not_specialize=["rows"])
def fold_block(
    logits_ptr: tl.tensor,  # [C, K] float32, contiguous, not yet divided by the temperature
    target_ptr: tl.tensor,  # [C] int64
    state_ptr: tl.tensor,  # [5, C] float32, see above
    exp_ptr: tl.tensor,  # [C, V] row by row `exp_stride` apart, in the dtype of the head
    exp_stride: tl.tensor,
    rows: tl.tensor,  # C
    width: tl.tensor,  # K
    first_column: tl.tensor,  # of the block, in the vocabulary
    inverse_temperature: tl.tensor,
    FIRST: tl.constexpr,  # whether this is the first block of the rows
    BLOCK: tl.constexpr,  # power of two, at least K
    LARGEST_EXPONENT: tl.constexpr,  # E may reach exp of this before the row is stored anew
) -> None:
    """Folds one block of one row into its state, and stores E."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    z = tl.load(logits_ptr + row * width + column, mask=inside, other=float("-inf")) * inverse_temperature
    is_target = column == tl.load(target_ptr + row) - first_column

    if FIRST:
        before = tl.full((), float("-inf"), tl.float32)
        others = tl.full((), 0.0, tl.float32)
        moment = others
        target_logit = before
        shift = before
    else:
        before = tl.load(state_ptr + row)
        others = tl.load(state_ptr + rows + row)
        moment = tl.load(state_ptr + 2 * rows + row)
        target_logit = tl.load(state_ptr + 3 * rows + row)
        shift = tl.load(state_ptr + 4 * rows + row)

    largest = tl.maximum(tl.max(z, axis=0), before)
    # Only where all logits so far are -inf; then nothing may be subtracted from them.
    finite_largest = tl.where(largest == float("-inf"), 0.0, largest)
    d = z - finite_largest
    e = tl.exp(d)
    e_of_others = tl.where(is_target, 0.0, e)
    # A token of probability zero adds nothing: 0 · -inf must not become NaN.
    product = e_of_others * tl.where(e_of_others == 0.0, 0.0, d)
    shrink = tl.where(before == float("-inf"), 0.0, tl.exp(before - finite_largest))
    change = tl.where(before == float("-inf"), 0.0, before - finite_largest)
    moment = shrink * (moment + others * change) + tl.sum(product, axis=0)
    others = shrink * others + tl.sum(e_of_others, axis=0)
    found = tl.sum(is_target.to(tl.int32), axis=0) > 0
    target_logit = tl.where(found, tl.sum(tl.where(is_target, z, 0.0), axis=0), target_logit)

    # E is stored relative to the largest logit of the first block. Exponents reach far enough for that, but for a row
    # whose logits grow by more than LARGEST_EXPONENT afterwards: what is stored of it is then scaled, which is rare.
    exp_row_ptr = exp_ptr + row * exp_stride
    if largest - shift > LARGEST_EXPONENT:
        factor = tl.exp(shift - finite_largest)
        start = 0
        while start < first_column:
            stored = tl.load(exp_row_ptr + start + column).to(tl.float32)
            tl.store(exp_row_ptr + start + column, (stored * factor).to(exp_ptr.dtype.element_ty))
            start += BLOCK
        shift = largest
    finite_shift = tl.where(shift == float("-inf"), 0.0, shift)
    e *= tl.exp(finite_largest - finite_shift)
    tl.store(exp_row_ptr + first_column + column, e.to(exp_ptr.dtype.element_ty), mask=inside)

    tl.store(state_ptr + row, largest)
    tl.store(state_ptr + rows + row, others)
    tl.store(state_ptr + 2 * rows + row, moment)
    tl.store(state_ptr + 3 * rows + row, target_logit)
    tl.store(state_ptr + 4 * rows + row, shift)


@triton.jit(do_not_specialize=["rows"])
def close_rows(
    target_ptr: tl.tensor,  # [C] int64
    state_ptr: tl.tensor,  # [5, C] float32
    exp_ptr: tl.tensor,  # [C, V]: E, and E' afterwards
    exp_stride: tl.tensor,
    logp_ptr: tl.tensor,  # [C] float32
    entropy_ptr: tl.tensor,  # [C] float32
    scale_ptr: tl.tensor,  # [C] float32: Σ E of the row, the target included
    rows: tl.tensor,  # C
    BLOCK: tl.constexpr,
) -> None:
    """Log-probability, entropy and normaliser of folded rows; the target's E becomes E' = minus the sum of the others.

    E'/scale = p - onehot, with the digits of 1 - p_y kept however close p_y is to 1.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    largest = tl.load(state_ptr + row, mask=inside, other=0.0)
    others = tl.load(state_ptr + rows + row, mask=inside, other=1.0)
    moment = tl.load(state_ptr + 2 * rows + row, mask=inside, other=0.0)
    d_target = tl.load(state_ptr + 3 * rows + row, mask=inside, other=0.0) - largest
    shift = tl.load(state_ptr + 4 * rows + row, mask=inside, other=0.0)

    e_target = tl.exp(d_target)
    total = others + e_target
    # log1p(O), for targets that are the likeliest token: the rounding of 1 + O is divided out again.
    grown = 1.0 + others
    log1p_others = tl.where(grown == 1.0, others, tl.log(grown) * (others / tl.where(grown == 1.0, 1.0, grown - 1.0)))
    log_total = tl.where(d_target == 0.0, log1p_others, tl.log(total))
    moment += e_target * tl.where(e_target == 0.0, 0.0, d_target)
    tl.store(logp_ptr + row, d_target - log_total, mask=inside)
    tl.store(entropy_ptr + row, log_total - moment / total, mask=inside)

    growth = tl.exp(largest - shift)
    tl.store(scale_ptr + row, total * growth, mask=inside)
    target = tl.load(target_ptr + row, mask=inside, other=0)
    target_exp_ptr = exp_ptr + row.to(tl.int64) * exp_stride + target
    tl.store(target_exp_ptr, (-others * growth).to(exp_ptr.dtype.element_ty), mask=inside)


@triton.jit
def move_rows(
    exp_ptr: tl.tensor,  # [C, V]
    exp_stride: tl.tensor,
    source_ptr: tl.tensor,  # [R] int64: which row is to stand at each of the first R places
    vocabulary: tl.tensor,  # V
    BLOCK: tl.constexpr,
) -> None:
    """Fills places among the first R rows from rows behind them; a row that is its own source stays."""
    place = tl.program_id(0).to(tl.int64)
    source = tl.load(source_ptr + place)
    if source != place:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < vocabulary
        moved = tl.load(exp_ptr + source * exp_stride + column, mask=inside)
        tl.store(exp_ptr + place * exp_stride + column, moved, mask=inside)


@triton.jit
def weigh_with_entropy(
    exp_ptr: tl.tensor,  # [R, V]: E', and the gradient with respect to z afterwards
    exp_stride: tl.tensor,
    target_ptr: tl.tensor,  # [R] int64
    logp_ptr: tl.tensor,  # [R] float32, and so all that follow
    entropy_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    coefficient_ptr: tl.tensor,
    entropy_coefficient_ptr: tl.tensor,
    vocabulary: tl.tensor,  # V
    BLOCK: tl.constexpr,
) -> None:
    """Replaces E' by c·(onehot - p) - k·p·(log p + entropy): the gradient of c·log p_y + k·entropy."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocabulary
    scale = tl.load(scale_ptr + row)
    coefficient = tl.load(coefficient_ptr + row)
    entropy_coefficient = tl.load(entropy_coefficient_ptr + row)
    entropy = tl.load(entropy_ptr + row)
    is_target = column == tl.load(target_ptr + row)
    ratio = tl.load(exp_ptr + row * exp_stride + column, mask=inside, other=0.0).to(tl.float32) / scale  # p - onehot
    p = tl.where(is_target, tl.exp(tl.load(logp_ptr + row)), ratio)
    surprise = tl.where(p == 0.0, 0.0, p * (tl.log(tl.where(p == 0.0, 1.0, p)) + entropy))
    gradient = -coefficient * ratio - entropy_coefficient * surprise
    tl.store(exp_ptr + row * exp_stride + column, gradient.to(exp_ptr.dtype.element_ty), mask=inside)
