"""Where the tokens that count lie: padded rows or packed sequences, and nothing else after this file.

Shapes: B sequences, T tokens of a padded row, N tokens that count (the unmasked ones, packed).

The caller brings padded tensors [B, T] with a boolean mask, or packed ones with cu_seqlens [B+1], where sequence b is
`x[cu_seqlens[b]:cu_seqlens[b + 1]]`, and perhaps a mask. `gather` keeps the tokens that count, row after row, and every
other file of this room sees only [N]. So what a masked position holds (NaN, inf, an old log-prob of -inf) never meets
arithmetic: loss and gradient are bit for bit those of a batch without it, and padded and packed are one code path.
Multiplying by a mask instead would leave a finite loss with a NaN gradient, since inf * 0 is NaN.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dinghai.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How the N tokens that count fall into B sequences, and where they stood in the caller's tensors."""

    shape: torch.Size  # of the caller's token tensors: [B, T], or [N] when packed
    index_N: Tensor | None  # where the tokens stood in the flattened tensor, ascending; None: every position counts
    length_B: Tensor  # tokens that count in each sequence (int64); 0 where a sequence is masked altogether
    tokens: int  # N
    cu_seqlens: Tensor | None = None  # of packed sequences, in positions: what `part` cuts by
    whole_length_B: Tensor | None = None
    """In a part that cuts a sequence: tokens that count in each whole sequence. None: all sequences are whole."""
    continues: bool = False  # the first sequence has tokens that count before this part

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Layout:
        """The layout of a tensor of tokens: packed if there is a cu_seqlens, else padded.

        Costs one synchronisation with a GPU for a mask (how many tokens count decides shapes) and one for checking
        cu_seqlens; none per metric.

        Raises:
            InputError: a shape or dtype does not fit, or cu_seqlens does not span the tokens.
        """
        if mask is not None:
            _check_mask(mask, tokens)
        if cu_seqlens is not None:
            return cls.packed(tokens.shape, cu_seqlens, mask)
        if tokens.dim() != 2:
            raise InputError(
                f"log-probs must be padded [B, T] with a mask, or packed [N] with cu_seqlens; got shape "
                f"{list(tokens.shape)} without cu_seqlens"
            )
        if mask is None:
            raise InputError(
                "padded log-probs need a boolean mask, True where a token is trained on; "
                "if every token counts, pass torch.ones_like(logp_new, dtype=torch.bool)"
            )
        return cls.padded(mask)

    @classmethod
    def padded(cls, mask_BT: Tensor) -> Layout:
        """Rows of one length, of which the mask says what counts."""
        index_N = mask_BT.reshape(-1).nonzero().squeeze(1)
        return cls(mask_BT.shape, index_N, mask_BT.sum(dim=1), index_N.numel())

    @classmethod
    def packed(cls, shape: torch.Size, cu_seqlens: Tensor, mask_N: Tensor | None = None) -> Layout:
        """Sequences end to end, cut at cu_seqlens."""
        _check_cu_seqlens(cu_seqlens, shape)
        cu_seqlens = cu_seqlens.long()
        if mask_N is None:
            return cls(shape, None, cu_seqlens.diff(), shape[0], cu_seqlens)
        index_N = mask_N.nonzero().squeeze(1)
        counted = torch.cat([mask_N.new_zeros(1, dtype=torch.long), mask_N.cumsum(0)])
        return cls(shape, index_N, counted[cu_seqlens].diff(), index_N.numel(), cu_seqlens)

    def part(self, positions: slice) -> Layout:
        """The layout of neighbouring positions of packed sequences, which may cut a sequence at either end.

        What a reduction does to a token of a cut sequence is what it does in the whole; sums over parts of sequences
        are refused. Costs no more than the part is long.

        Raises:
            InputError: the sequences are padded, or a part themselves.
        """
        if self.cu_seqlens is None:
            raise InputError("only whole packed sequences have parts: give cu_seqlens")
        start, stop, _ = positions.indices(self.shape[0])
        first = bisect_right(self._positions, start) - 1
        last = max(bisect_left(self._positions, stop), first)
        begin, end = self._counted_before(start), self._counted_before(stop)
        bounds = self._counted[first : last + 1]
        cut = [min(max(bound, begin), end) for bound in bounds]
        whole_B = self.length_B[first:last]
        return Layout(
            shape=torch.Size([stop - start]),
            index_N=None if self.index_N is None else self.index_N[begin:end] - start,
            length_B=torch.tensor(cut).diff().to(whole_B.device, non_blocking=True) if cut != bounds else whole_B,
            tokens=end - begin,
            whole_length_B=whole_B if cut != bounds else None,
            continues=len(cut) > 1 and bounds[0] < begin < cut[1],
        )

    @cached_property
    def _positions(self) -> list[int]:
        """Where the sequences begin and end, in positions."""
        assert self.cu_seqlens is not None
        return self.cu_seqlens.tolist()

    @cached_property
    def _counted(self) -> list[int]:
        """Where the sequences begin and end, in tokens that count."""
        return [0, *self.length_B.cumsum(0).tolist()]

    @cached_property
    def _index_on_cpu(self) -> Tensor | None:
        return None if self.index_N is None else self.index_N.cpu()

    def _counted_before(self, position: int) -> int:
        """How many tokens that count stand before a position."""
        index_N = self._index_on_cpu
        return position if index_N is None else int(torch.searchsorted(index_N, position))

    @property
    def rows(self) -> int:
        """B, empty sequences included."""
        return self.length_B.numel()

    @cached_property
    def sequences(self) -> Tensor:
        """Number of sequences with at least one token that counts. One that is masked altogether counts nowhere.

        Of parts, the one with the first such token counts the sequence.
        """
        return (self.length_B > 0).sum() - int(self.continues)

    @cached_property
    def row_N(self) -> Tensor:
        """The sequence of each token."""
        return torch.repeat_interleave(self.length_B, output_size=self.tokens)

    def gather(self, x: Tensor) -> Tensor:
        """The tokens that count: [B, T] or packed -> [N]. Differentiable; the others get a gradient of exactly 0."""
        flat = x.reshape(-1)
        return flat if self.index_N is None else flat.index_select(0, self.index_N)

    def scatter(self, x_N: Tensor, fill: float = 0.0) -> Tensor:
        """[N] -> the caller's shape, with `fill` at masked positions."""
        if self.index_N is None:
            return x_N.reshape(self.shape)
        out = x_N.new_full((self.shape.numel(),), fill)
        return out.index_copy_(0, self.index_N, x_N).reshape(self.shape)

    def spread(self, x_B: Tensor) -> Tensor:
        """A number of each sequence to its tokens: [B] -> [N]."""
        return x_B.index_select(0, self.row_N)

    def sum(self, x_N: Tensor) -> Tensor:
        """Sum over each sequence: [N] -> [B], 0 for an empty one. In order, so a split into sequences alters no bit.

        Raises:
            InputError: a sequence is cut.
        """
        if self.whole_length_B is not None:
            raise InputError(
                "a rule sums over sequences, but was given a part of one: register it with whole_sequences=True"
            )
        return torch.segment_reduce(x_N, "sum", lengths=self.length_B, unsafe=True)

    def mean(self, x_N: Tensor) -> Tensor:
        """Mean over each sequence: [N] -> [B], 0 for an empty one."""
        return self.sum(x_N) / self.length_B.clamp(min=1)


def _check_mask(mask: Tensor, tokens: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise InputError(f"mask must be boolean, True where a token is trained on; got {mask.dtype} (use mask.bool())")
    if mask.shape != tokens.shape:
        raise InputError(f"mask has shape {list(mask.shape)}, but the log-probs have {list(tokens.shape)}")


def _check_cu_seqlens(cu_seqlens: Tensor, shape: torch.Size) -> None:
    if len(shape) != 1:
        raise InputError(f"cu_seqlens belongs to packed log-probs [N]; these have shape {list(shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise InputError(
            f"cu_seqlens must be a vector [B+1] of int32 or int64; got {cu_seqlens.dtype} {list(cu_seqlens.shape)}"
        )
    spans = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == shape[0]) & (cu_seqlens.diff() >= 0).all()
    if not bool(spans):
        raise InputError(f"cu_seqlens must rise from 0 to the number of tokens ({shape[0]}); got {cu_seqlens.tolist()}")
