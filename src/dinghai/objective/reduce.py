"""From one value a token to one loss, under verl's names.

A reduction is sum_t f_t x_t. The factor f_t has a part of the token's own sequence (`token_factor`) and one constant of
the whole optimiser step (`Normalizer`). Because the constant is given and not taken from the micro-batch at hand, the
losses of micro-batches add up to the loss of the whole under any split into whole sequences.

Shapes: x stands for [B, T] or packed [N].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.layout import Layout

Reduction = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"]


@dataclass(frozen=True)
class Normalizer:
    """What the whole optimiser step counts: unmasked tokens, and sequences that have at least one."""

    tokens: int | Tensor
    sequences: int | Tensor

    @classmethod
    def of(cls, layout: Layout) -> Normalizer:
        return cls(layout.mask.sum(), layout.filled)


def check_reduction(reduction: str, max_length: int | None) -> None:
    """InputError for an unknown reduction, or a constant length where it is not used or missing."""
    if reduction not in get_args(Reduction):
        raise InputError(f"there is no reduction {reduction!r}; there are {', '.join(get_args(Reduction))}")
    if (reduction == "seq-mean-token-sum-norm") != (max_length is not None):
        raise InputError(
            "max_length is the constant that reduction='seq-mean-token-sum-norm' divides by (Dr. GRPO), and is used "
            "by no other; pass both or neither"
        )


def token_factor(reduction: str, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The part of f_t that a token's own sequence decides: 1/|y| for sequence means of token means, else 1."""
    if reduction == "seq-mean-token-mean":
        return layout.spread(1 / layout.length_B.clamp_min(1).to(dtype))
    return torch.ones_like(layout.mask, dtype=dtype)


def step_divisor(reduction: str, normalizer: Normalizer, max_length: int | None) -> int | Tensor:
    """The constant of the optimiser step that the sum is divided by; at least 1, so that no tokens give a loss of 0.

    token-mean               tokens                     DAPO, 2503.14476 eq. 8
    seq-mean-token-mean      sequences                  GRPO, 2402.03300 eq. 3
    seq-mean-token-sum       sequences
    seq-mean-token-sum-norm  sequences * max_length     Dr. GRPO, 2503.20783 sec. 3.1
    token-sum                1
    """
    if reduction == "token-sum":
        return 1
    count = normalizer.tokens if reduction == "token-mean" else normalizer.sequences
    count = count.clamp_min(1) if isinstance(count, Tensor) else max(1, count)
    return count * max_length if max_length is not None else count


def reduce_tokens(
    x: Tensor, layout: Layout, reduction: str, normalizer: Normalizer | None = None, max_length: int | None = None
) -> Tensor:
    """sum_t f_t x_t, a scalar. `x` must be 0, or at least finite, where masked."""
    normalizer = normalizer or Normalizer.of(layout)
    factor = token_factor(reduction, layout, x.dtype)
    return torch.where(layout.mask, x * factor, 0).sum() / step_divisor(reduction, normalizer, max_length)
