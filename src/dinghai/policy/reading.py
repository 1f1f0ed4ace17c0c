"""How a policy reads sequences: padded, or packed into one row, with each prompt read once for its completions.

Shapes: B sequences, S padded positions, M packed positions, N packed completion tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.policy.attention import attending
from dinghai.policy.packed_attention import PackedAttention
from dinghai.policy.sequences import TokenSequence, pack, pad


@dataclass(frozen=True)
class Reading:
    """How sequences are read.

    packed:         in one row without padding
    shared_prompts: a prompt once for all its completions in the row; needs `packed`
    """

    packed: bool
    shared_prompts: bool


PADDED = Reading(packed=False, shared_prompts=False)


def read_states(
    hidden: Callable[[Tensor, Tensor | None], Tensor],
    sequences: Sequence[TokenSequence],
    reading: Reading,
    pad_id: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The states that predict each completion token, hidden_NH, and those tokens, target_N.

    hidden: (input ids [B, S], position ids [B, S] or None where they count from 0) -> last hidden states [B, S, H]
    """
    if not reading.packed:
        padded = pad(sequences, pad_id, device)
        return hidden(padded.input_ids_BS, None).flatten(0, 1).index_select(0, padded.predict_N), padded.target_N
    packed = pack(sequences, reading.shared_prompts, device)
    with attending(PackedAttention(packed)):
        hidden_MH = hidden(packed.input_ids_M[None], packed.position_ids_M[None])[0]
    return hidden_MH.index_select(0, packed.predict_N), packed.target_N
