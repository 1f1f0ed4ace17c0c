"""From a number per token to one number: the reductions, under verl's names (or TRL's), and what they divide by.

Shapes: B sequences, T tokens of a padded row, N tokens that count (packed, see layout.py).

Every reduction is  Σ_t f_t · x_t / D: a factor per token, which only needs the token's own sequence, and a divisor,
which needs the whole optimiser step. So micro-batches that divide by the D of the whole add up to it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.layout import Layout

ReductionName = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"
]
TRLLossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
REDUCTIONS: tuple[ReductionName, ...] = get_args(ReductionName)
REDUCTION_ALIASES: dict[TRLLossType, ReductionName] = {
    "grpo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "cispo": "token-mean",
    "vespo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
}


@dataclass(frozen=True)
class ReductionElsewhere:
    """What a reduction is called in another framework, what that computes, and where the two part: a row of the docs.

    b: rows of a micro-batch, fully masked ones included. G: micro-batches of an optimiser step. W: ranks.
    """

    framework: Literal["TRL", "verl"]
    name: str
    reduction: ReductionName
    formula: str  # of one micro-batch's loss on one rank; gradients add over the G and are averaged over the W
    parts: str  # where it is no longer the same


_TRL_ROWS = "rows that are fully masked count; micro-batches of unequal b weigh their rows unequally"
_TRL_WINDOW = "S micro-batches share N, the tokens they hold together; unless S = G, a step is divided by an average"
_VERL_ROWS = "with global_batch_size set, rows that are fully masked count"
REDUCTIONS_ELSEWHERE: tuple[ReductionElsewhere, ...] = (
    ReductionElsewhere("TRL", "grpo", "seq-mean-token-mean", "Σ_i (Σ_t x / |y_i|) / b / G", _TRL_ROWS),
    ReductionElsewhere("TRL", "sapo", "seq-mean-token-mean", "as grpo", _TRL_ROWS),
    ReductionElsewhere(
        "TRL", "bnpo", "token-mean", "Σx / Σ|y| / G, of the micro-batch alone", "a mean of means as soon as G or W > 1"
    ),
    ReductionElsewhere("TRL", "dapo", "token-mean", "Σx / (N/W · G/S)", _TRL_WINDOW),
    ReductionElsewhere("TRL", "cispo", "token-mean", "as dapo", _TRL_WINDOW),
    ReductionElsewhere("TRL", "vespo", "token-mean", "as dapo", _TRL_WINDOW),
    ReductionElsewhere("TRL", "dr_grpo", "seq-mean-token-sum-norm", "Σx / (b · max_completion_length) / G", _TRL_ROWS),
    ReductionElsewhere("TRL", "luspo", "seq-mean-token-sum", "Σ_i Σ_t x / b / G", _TRL_ROWS),
    ReductionElsewhere("verl", "token-mean", "token-mean", "Σx / batch_num_tokens · W", "nowhere"),
    ReductionElsewhere("verl", "token-sum", "token-sum", "Σx · W", "nowhere"),
    ReductionElsewhere("verl", "seq-mean-token-sum", "seq-mean-token-sum", "Σx / global_batch_size · W", _VERL_ROWS),
    ReductionElsewhere(
        "verl",
        "seq-mean-token-sum-norm",
        "seq-mean-token-sum-norm",
        "Σx / global_batch_size / loss_scale_factor · W",
        _VERL_ROWS + "; loss_scale_factor is by default T, the padded length of the micro-batch, not a constant",
    ),
    ReductionElsewhere(
        "verl",
        "seq-mean-token-mean",
        "seq-mean-token-mean",
        "Σ_i (Σ_t x / (|y_i| + 1e-8)) / global_batch_size · W",
        _VERL_ROWS + "; the 1e-8",
    ),
)


@dataclass(frozen=True)
class Normalizer:
    """How much one optimiser step holds, over all its micro-batches (and ranks): what a mean divides by.

    A sequence without a token that counts is not counted. Zeros are allowed: a step of nothing has loss 0.
    """

    tokens: int | float | Tensor
    sequences: int | float | Tensor

    def __post_init__(self) -> None:
        for name in ("tokens", "sequences"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and not value >= 0:
                raise InputError(f"Normalizer.{name} must be 0 or more; got {value!r}")

    @classmethod
    def of(cls, layout: Layout) -> Normalizer:
        """That of one batch on its own."""
        return cls(tokens=layout.tokens, sequences=layout.sequences)


@dataclass(frozen=True)
class Reduction:
    """One of `REDUCTIONS`: |y| is the number of tokens of the sequence that count, M is max_length.

    ========================= ======= =============== ==============================================================
    name                      f_t     D               source
    ========================= ======= =============== ==============================================================
    token-mean                1       tokens          DAPO, arXiv 2503.14476, equation 8
    seq-mean-token-mean       1/|y|   sequences       GRPO, arXiv 2402.03300, equation 3
    seq-mean-token-sum        1       sequences       the policy gradient of whole sequences
    seq-mean-token-sum-norm   1       sequences · M   Dr. GRPO, arXiv 2503.20783, section 3.2: a constant, so that
                                                      length has no say in a token's weight
    token-sum                 1       1
    ========================= ======= =============== ==============================================================

    TRL's names are understood too (`REDUCTION_ALIASES`): `Reduction("dapo")` is `Reduction("token-mean")`, and has that
    name. `REDUCTIONS_ELSEWHERE` says what TRL and verl compute under each name, and where that is something else. Where
    it is only that they count rows that are fully masked, `Normalizer(tokens, sequences=all rows)` gives theirs.

    Raises:
        InputError: unknown name, or max_length missing for seq-mean-token-sum-norm or given to another.
    """

    name: ReductionName | TRLLossType
    max_length: int | None = None

    def __post_init__(self) -> None:
        given = self.name
        object.__setattr__(self, "name", REDUCTION_ALIASES.get(cast(TRLLossType, given), given))
        if self.name not in REDUCTIONS:
            raise InputError(
                f"unknown reduction {given!r}; one of {', '.join(REDUCTIONS)}, or TRL's {', '.join(REDUCTION_ALIASES)}"
            )
        if self.name == "seq-mean-token-sum-norm":
            if self.max_length is None or self.max_length < 1:
                raise InputError(
                    f"reduction {given} divides by a constant length: give max_length, the longest "
                    f"completion in tokens; got {self.max_length!r}"
                )
        elif self.max_length is not None:
            raise InputError(f"max_length is read by seq-mean-token-sum-norm only, not by {given}: leave it out")

    def factor(self, layout: Layout) -> Tensor:
        """f_t of each token: [N], float64. The same however the batch is split, also within sequences."""
        if self.name == "seq-mean-token-mean":
            length_B = layout.length_B if layout.whole_length_B is None else layout.whole_length_B
            return layout.spread(1.0 / length_B.double())
        return torch.ones(layout.tokens, dtype=torch.float64, device=layout.length_B.device)

    def divisor(self, normalizer: Normalizer) -> float | Tensor:
        """D, at least 1 token or sequence, so that nothing at all gives 0 and not NaN."""
        if self.name == "token-sum":
            return 1.0
        if self.name == "token-mean":
            return _at_least_one(normalizer.tokens)
        return _at_least_one(normalizer.sequences) * (self.max_length or 1)

    def __call__(self, x_N: Tensor, layout: Layout, normalizer: Normalizer | None = None) -> Tensor:
        """Σ_t f_t · x_t / D, a scalar. Without a normaliser, D is that of the batch given, which has to be whole."""
        if normalizer is None and layout.whole_length_B is not None:
            raise InputError("a part of sequences has no mean of its own: give the normalizer of the whole")
        factor_N = self.factor(layout).to(x_N.dtype)
        return (factor_N * x_N).sum() / self.divisor(normalizer or Normalizer.of(layout))


def attach_gradient(value_N: Tensor, weight_N: Tensor, x_N: Tensor) -> Tensor:
    """A tensor whose value is `value_N` and whose derivative by `x_N` is `weight_N`, both taken as constants: [N].

    So a gradient that is known in closed form *is* the gradient, and the record of it cannot disagree.
    """
    return value_N.detach() + weight_N.detach() * (x_N - x_N.detach())


def _at_least_one(count: int | float | Tensor) -> float | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(float(count), 1.0)
