"""Check that bad tokens which became likelier do not make the gradient: what a dual clip is for. Shapes: N tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.checks.places import largest, place_of, token_of
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.regions import REGION_MEANING, REGIONS
from dinghai.lens.series import share_of_signal, steps_and_values
from dinghai.lens.settings import table
from dinghai.lens.tokens import Tokens
from dinghai.lens.words import counted, ordinal, percent

_DUAL_CLIP = Threshold(
    3.0,
    "the ratio beyond which the dual clip's paper stops such tokens, arXiv 1912.09729; recipes of DAPO have 10",
    "paper",
)
_CARRIED = Threshold(
    0.05,
    "of the gradient, in tokens beyond that ratio: on the built-in task 13 runs of four updates a batch and four rules "
    "have less than 0.005, one with 16 updates and no dual clip has 0.13",
    "measured here",
)
_GRAVE = Threshold(0.25, "of the gradient: a quarter of what is learned comes of so few tokens", "arithmetic")
_TOKENS = Threshold(
    0.05,
    "of the tokens with a signal: updates should make bad tokens rarer; on the built-in task under 0.01",
    "measured here",
)
_NARROW = Threshold(
    0.05, "in log r: beyond nearer bounds a token is not far gone; usual ones are at 0.1 to 0.3", "arithmetic"
)

_RELAPSE = REGIONS.index("relapse")


@dataclass(frozen=True)
class _Minibatch:
    step: int
    update: int
    gradient: float  # that the rule left
    far: float  # of it in relapse beyond the ratio of the dual clip
    tokens: int  # how many such tokens
    signal: int  # of how many with a signal

    @property
    def share(self) -> float:
        return self.far / self.gradient


def _relapse_dominates(case: Case) -> Finding | None:
    minibatches = [one for step in case.steps for one in _minibatches(case, step)]
    whole = sum(one.gradient for one in minibatches)
    carried = sum(one.far for one in minibatches) / whole if whole > 0 else 0.0
    relapse = _share_of_tokens(case)
    if carried <= _CARRIED.value and relapse <= _TOKENS.value:
        return None
    evidence = []
    if carried > _CARRIED.value:
        evidence.append(_share(minibatches, carried))
        worst = max(minibatches, key=lambda one: one.share)
        evidence += [_worst_minibatch(worst), *_worst_tokens(case, worst)]
    if relapse > _TOKENS.value:
        step, _ = max(steps_and_values(case.training, "clip/region/relapse_fraction"), key=lambda pair: pair[1])
        evidence.append(
            Evidence(
                f"{percent(relapse)} of the tokens with a signal lay in relapse ({REGION_MEANING['relapse']}), most of "
                f"them at step {step}",
                Place(step=step),
            )
        )
    return Finding(
        check="relapse-dominates",
        grade=Grade.HARMFUL if carried > _GRAVE.value or relapse > _TOKENS.value else Grade.NOTE,
        share=max(carried, relapse),
        title="Bad tokens that became likelier make much of the gradient",
        evidence=tuple(evidence),
        cause="The updates overshoot, and for A < 0 the weight grows with r without a bound: no clip acts there",
        fix=_fix(case, carried),
        view="regions",
    )


def _share_of_tokens(case: Case) -> float:
    """In relapse, of those with a signal; 0 where the bounds are so narrow that ratios leave them on either side as a
    matter of course, as the ratios of sequences do."""
    if case.of_sequences or (case.nearest_bound is not None and case.nearest_bound < _NARROW.value):
        return 0.0
    return share_of_signal(case.training, "clip/region/relapse_fraction") or 0.0


def _share(minibatches: list[_Minibatch], carried: float) -> Evidence:
    tokens, signal = sum(one.tokens for one in minibatches), sum(one.signal for one in minibatches)
    return Evidence(
        f"{counted(tokens, 'token')} of {signal:,} with a signal, {REGION_MEANING['relapse']} beyond r = "
        f"{_DUAL_CLIP.value:g}, {'carries' if tokens == 1 else 'carry'} {percent(carried)} of the gradient of the "
        "steps looked at"
    )


def _worst_minibatch(worst: _Minibatch) -> Evidence:
    return Evidence(
        f"in the {ordinal(worst.update + 1)} update of step {worst.step} {counted(worst.tokens, 'token')} of "
        f"{worst.signal:,} {'carries' if worst.tokens == 1 else 'carry'} {percent(worst.share)} of it",
        Place(step=worst.step, update=worst.update),
    )


def _fix(case: Case, carried: float) -> str:
    parameters = table(case.table("objective"), "parameters")
    unbounded = "dual_clip" in parameters and parameters["dual_clip"] is None
    fewer = "try a lower update.lr or fewer updates a batch"
    if not unbounded:
        return fewer
    if carried > _CARRIED.value:
        return f"try objective.dual_clip = {_DUAL_CLIP.value:g}, a lower update.lr or fewer updates a batch"
    return f"{fewer}, or an objective.dual_clip"


def _minibatches(case: Case, step: int) -> list[_Minibatch]:
    tokens = case.tokens(step)
    if tokens is None:
        return []
    left_N = _gradient_left(tokens)
    far_N = _far(tokens)
    found = []
    for update in np.unique(tokens.update):
        here_N = tokens.update == update
        whole = float(left_N[here_N].sum())
        if whole > 0:
            far = float(left_N[here_N & far_N].sum())
            counts = (int((here_N & which_N).sum()) for which_N in (far_N, tokens.signal))
            found.append(_Minibatch(step, int(update), whole, far, *counts))
    return found


def _gradient_left(tokens: Tokens) -> np.ndarray:
    """[N] float64, f·|w|·(1-p) of what the rule left, 0 where that is not finite."""
    with np.errstate(invalid="ignore"):
        left_N = tokens.gradient.astype(np.float64) - tokens.removed
    return np.where(np.isfinite(left_N), left_N, 0.0)


def _far(tokens: Tokens) -> np.ndarray:
    return (tokens.region == _RELAPSE) & (tokens.log_ratio > np.log(_DUAL_CLIP.value)) & ~tokens.stopped


def _worst_tokens(case: Case, where: _Minibatch, count: int = 3) -> list[Evidence]:
    tokens = case.tokens(where.step)
    assert tokens is not None
    here_N = tokens.update == where.update
    left_N = _gradient_left(tokens)
    whole = float(left_N[here_N].sum())
    return [
        Evidence(
            f"{token_of(tokens, row)}, r = {float(tokens.ratio[row]):.3g}: "
            f"{percent(float(left_N[row]) / whole)} of that minibatch's gradient",
            place_of(case, where.step, tokens, row),
        )
        for row in largest(np.where(here_N & _far(tokens), left_N, np.nan), count)
    ]


CHECKS = (
    Check(
        "relapse-dominates",
        "Bad tokens that became likelier make much of the gradient, which a dual clip would bound.",
        {"ratio": _DUAL_CLIP, "carried": _CARRIED, "harmful": _GRAVE, "tokens": _TOKENS, "narrow bound": _NARROW},
        _relapse_dominates,
    ),
)
