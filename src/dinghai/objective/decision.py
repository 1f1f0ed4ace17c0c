"""What a rule decided about each token. Metrics, traces and pages read this record; nothing ever recomputes it.

Shapes: B sequences, T tokens of a padded row, N packed tokens. A field has the shape of the caller's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

from dinghai.objective.layout import Layout


class Region(IntEnum):
    """Where a token lies, by ratio r and advantage A. The numbers go to disk: one is never changed or used again."""

    MASKED = 0  # not trained on: prompt, padding, tool output
    NO_SIGNAL = 1  # A = 0: the group agreed; counted apart, never as clipped
    INSIDE = 2  # 1-ε_low <= r <= 1+ε_high, both ends included
    OVERSHOOT = 3  # r > 1+ε_high, A > 0: a good token already pushed far enough
    RELAPSE = 4  # r > 1+ε_high, A < 0: a bad token became likelier
    FORGOTTEN = 5  # r < 1-ε_low, A > 0: a good token became rarer
    ESCAPED = 6  # r < 1-ε_low, A < 0: a bad token already left behind
    DUAL = 7  # r > c, A < 0: beyond the dual clip
    DROPPED = 8  # by the correction between rollout engine and trainer, whatever the rule says of them


class Effect(IntEnum):
    """What the rule did to the unclipped gradient weight w0 = r·A. Numbers go to disk, as those of `Region`."""

    NONE = 0  # masked, or A = 0: no gradient to act on
    KEPT = 1  # w = w0
    ATTENUATED = 2  # same sign, smaller
    AMPLIFIED = 3  # same sign, larger
    STOPPED = 4  # A != 0 and w is exactly 0
    REVERSED = 5  # the other sign


@dataclass(frozen=True)
class Decision:
    """The record of each token's fate. Detached from the graph.

    At masked positions: region MASKED, effect NONE, ratio 1, and 0 in all other fields.
    """

    log_ratio: Tensor  # of the ratio that the rule saw: each token's own, or the sequence's, in nats
    ratio: Tensor  # r = exp(log_ratio)
    advantage: Tensor  # A of each token
    weight: Tensor  # w: coefficient of ∇log π_new in the objective that is maximised, before the reduction's factor
    weight_unclipped: Tensor  # w0 = r·A: the weight without the rule (times the correction, where the token is kept)
    region: Tensor  # uint8, `Region`
    effect: Tensor  # uint8, `Effect`
    mask: Tensor  # bool, True where the token counts
    kl_weight: Tensor | None = None
    """What the KL penalty adds to `weight`: -β·(its coefficient of ∇log π_new); None without a penalty in the loss.

    A token that the clip stopped still gets this part of the gradient, so w = 0 alone is not "no gradient at all".
    """

    correction: Tensor | None = None
    """The factor of the rollout correction in `weight`, 0 where it dropped the token; None without a correction."""

    @classmethod
    def joined(cls, parts: Sequence[Decision]) -> Decision:
        """That of packed tokens from those of their parts, in order."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        present = {name: torch.cat(pieces) for name, pieces in columns.items() if pieces[0] is not None}
        return replace(parts[0], **present)

    def unpacked(self, layout: Layout) -> Decision:
        """The same record, from [N] to the caller's shape."""
        filled = {"ratio": 1.0}  # elsewhere 0, which is also Region.MASKED, Effect.NONE and False
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        present = {name: x for name, x in columns.items() if x is not None}
        return replace(self, **{name: layout.scatter(x, filled.get(name, 0.0)) for name, x in present.items()})


def effects(weight: Tensor, weight_unclipped: Tensor, advantage: Tensor) -> Tensor:
    """The effect of a rule on each token: w and w0 = r·A -> `Effect` (uint8), for tokens that count.

    A weight that underflows to 0 has no gradient either and is STOPPED too. A token whose weight is NaN is KEPT: the
    NaN itself shows in every sum.
    """
    effect = torch.full_like(weight, Effect.KEPT, dtype=torch.uint8)
    effect.masked_fill_(weight.abs() < weight_unclipped.abs(), Effect.ATTENUATED)
    effect.masked_fill_(weight.abs() > weight_unclipped.abs(), Effect.AMPLIFIED)
    effect.masked_fill_(weight.sign() * weight_unclipped.sign() < 0, Effect.REVERSED)
    effect.masked_fill_(weight == 0, Effect.STOPPED)
    effect.masked_fill_(advantage == 0, Effect.NONE)
    return effect
