"""What advice on ε is: for each bound a range, a suggestion and reasons, or why there is none; and its criteria.

The range begins where a bound is out of the noise and leaves the policy most of its gradient, and ends where it hardly
takes anything. The criteria are data, each with its reason and what that rests on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dinghai.lens.doctor.threshold import Threshold
from dinghai.lens.epsilon_bounds import Bound, Published
from dinghai.lens.epsilon_evidence import Taken
from dinghai.lens.noise import Apart
from dinghai.objective import PolicyLoss

CRITERIA: dict[str, Threshold] = {
    "mistaken": Threshold(
        0.01,
        "where noise alone stops one token in a hundred, it stops as many as clips do in all in published runs of "
        "language models, one in a hundred to one in ten thousand",
        "paper",  # e.g. arXiv 2510.01161 (0.06 % to 1.2 %), arXiv 2507.18071, figure 2
    ),
    "takes_most": Threshold(
        0.5,
        "where it takes more than half of the gradient that it concerns, more of an update is thrown away than is made",
        "arithmetic",
    ),
    "takes_little": Threshold(
        0.05,
        "where it takes less than a twentieth of the gradient that it concerns, the updates are nearly those without "
        "it; GSPO at 0.2, which takes less, trains far worse on the built-in task than within the range",
        "measured here",
    ),
    "tokens": Threshold(
        2000,
        "a share of one in a hundred is known to a quarter of itself from 1,600 independent tokens, and those of an "
        "answer are not quite independent",
        "statistics",
    ),
    "entropy": Threshold(
        0.5,
        "entropy that halves while the reward stays where it was has bought nothing; no paper says what is too fast",
        "folklore",
    ),
    "steps": Threshold(3, "how far ratios go changes over a run; fewer steps are a moment of it", "statistics"),
}

Kind = Literal["keep", "change", "none"]
Why = Literal[
    "no-trace", "one-update", "no-bounds", "too-few-steps", "too-few-tokens", "noise-unknown", "within-noise", "idle",
    "beyond-all-values",
]  # fmt: skip


@dataclass(frozen=True)
class NoAdvice:
    """Why a run's record supports no advice, or none on one bound, and what to do about it: one or two sentences."""

    why: Why
    sentence: str


@dataclass(frozen=True)
class KnownNoise:
    """By how much two evaluations of the same weights differ, and in words which two."""

    apart: Apart
    source: str
    of_ratio: bool = True  # whether the run's own ratios may hold it; else it is that of another way to train


@dataclass(frozen=True)
class NoiseRow:
    """One noise, and what the bounds as they were set would stop by mistake because of it."""

    known: KnownNoise
    mistaken: dict[str, float]  # bound -> share of the tokens that it concerns


@dataclass(frozen=True)
class ValueRow:
    """What a bound would do at a value."""

    taken: Taken
    mistaken: float  # share of the tokens that it concerns, stopped because of noise alone
    kl: float | None  # nats, see `kl_at`


@dataclass(frozen=True)
class BoundAdvice:
    """What is advised on one bound. Values are in its own unit."""

    bound: Bound
    values: dict[float, ValueRow]  # those worth a line, ascending; the one that was set among them
    papers: list[Published]
    unreachable: tuple[float, float] | None  # good tokens that it can never stop: share of them, of their gradient
    kl_share_beyond: float | None  # part of the measured KL that lies beyond it
    low: float | None = None  # the range; None: no advice, or no value is too tight
    high: float | None = None  # None: no advice, or no value is too wide
    low_is_noise: bool = False  # what sets the lower end: the noise, or else the gradient that it takes
    suggestion: float | None = None
    reason: str = ""  # for the suggestion, the second half of a sentence
    nothing: NoAdvice | None = None

    @property
    def kind(self) -> Kind:
        if self.suggestion is None:
            return "none"
        return "keep" if self.suggestion == self.bound.value else "change"


@dataclass(frozen=True)
class Advice:
    """The advice on a run's bounds, or why there is none."""

    run: Path
    policy_loss: PolicyLoss
    nothing: NoAdvice | None = None
    bounds: list[BoundAdvice] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # that were looked at
    steps_recorded: int = 0
    one_in: int = 1  # completions that was looked at
    updates_per_batch: int = 0
    tokens: int = 0  # with a signal, in the updates from the second on
    mean_length: float = 0.0  # of the completions that these belong to, tokens
    noises: list[NoiseRow] = field(default_factory=list)  # the first is the one that the advice goes by
    kl_by_update: dict[int, float] = field(default_factory=dict)  # nats a token, by index of the update
    widened: str | None = None  # what of the record speaks for a wider upper bound, a sentence

    @property
    def changes(self) -> dict[str, float]:
        """Parameter -> value, where a change is advised."""
        return {
            one.bound.name: one.suggestion for one in self.bounds if one.kind == "change" and one.suggestion is not None
        }
