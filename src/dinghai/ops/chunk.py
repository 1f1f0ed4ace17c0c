"""What a device does with one chunk of the policy head: the seam between the passes over chunks and their arithmetic.

Shapes: C rows of one chunk, R of them that carry a gradient, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fold:
    """The rows of a chunk, folded over the vocabulary. What else the gradients need stays in the kernel's own buffer.

    hidden_CH, weight_VH: the operands, in their own dtype
    target_C:             token ids
    temperature:          logits are divided by it
    logp_C, entropy_C:    of the targets and of the distributions, in nats, float32
    """

    hidden_CH: Tensor
    weight_VH: Tensor
    target_C: Tensor
    temperature: float
    logp_C: Tensor
    entropy_C: Tensor


class ChunkKernel(Protocol):
    """The arithmetic of one chunk on one kind of device. It owns one buffer, which each fold overwrites."""

    def chunk_rows(self, vocabulary: int, dtype: torch.dtype) -> int:
        """How many rows a chunk has at most; depends on nothing but shapes, so equal calls round alike."""

    def fold(self, hidden_CH: Tensor, weight_VH: Tensor, target_C: Tensor, temperature: float) -> Fold:
        """Log-probabilities of the targets and entropies; keeps what `add_gradients` needs until the next fold."""

    def add_gradients(
        self,
        fold: Fold,
        rows_R: Tensor | None,
        coefficient_C: Tensor,
        entropy_coefficient_C: Tensor | None,
        grad_hidden_CH: Tensor,
        weight_grad_VH: Tensor | None,
    ) -> None:
        """The gradients of Σ_t coefficient_t · logp_t + entropy_coefficient_t · entropy_t. To be called once a fold.

        fold:                  what the latest call of `fold` returned
        rows_R:                which rows have a coefficient, ascending; None: all. At least one
        coefficient_C:         float32, of all rows of the chunk
        entropy_coefficient_C: likewise; None: the entropy has no part in the loss
        grad_hidden_CH:        zeros, of which the rows of `rows_R` are written
        weight_grad_VH:        float32, is added to; None: the head is frozen
        """
