"""Entropy that collapses or explodes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.checks.entropy_bounds import attribution
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.doctor.trend import change_of_means
from dinghai.lens.series import first_tenth, last_tenth, steps_and_values

COLLAPSE = Threshold(0.1, "of the entropy it began with: few completions of a prompt still differ", "measured here")
EXPLOSION = Threshold(
    3.0, "times the entropy it began with; healthy runs of the built-in task never pass 1.2 times", "measured here"
)
EXPLOSION_STEPS = Threshold(4, "steps with an entropy: fewer have no beginning and end", "arithmetic")
ROSE = Threshold(
    2.0, "standard errors by which a reward rises: then a higher entropy may be what it takes", "statistics"
)


def _collapsed(case: Case) -> Finding | None:
    series = steps_and_values(case.training, "entropy")
    if case.solved or not _is_long(series):
        return None
    begin, end = _ends(series)
    floor = COLLAPSE.value * begin
    if begin <= 0 or end >= floor:
        return None
    since = _since(series, lambda value: value < floor)
    return Finding(
        check="entropy-collapse",
        grade=Grade.HARMFUL,
        share=1 - end / begin,
        title="Entropy collapsed",
        evidence=_evidence(
            case,
            series,
            since,
            f"from {begin:.2g} to {end:.2g} nats a token, below a tenth of its start from step {since} on",
        ),
        cause="The policy hardly explores any more: completions of a prompt come out alike, and groups lose their "
        "signal",
        fix="an objective.entropy_bonus, a wider upper bound (objective.eps_high) or a lower update.lr may help",
        view="curves",
    )


def _exploded(case: Case) -> Finding | None:
    """The series may be short: where all completions are noise no group has a signal, and no entropy is measured."""
    series = steps_and_values(case.training, "entropy")
    if len(series) < EXPLOSION_STEPS.value:
        return None
    number = min(5, math.ceil(len(series) / 4))
    begin, end = (statistics.fmean(value for _, value in part) for part in (series[:number], series[-number:]))
    ceiling = EXPLOSION.value * begin
    if begin <= 0 or end <= ceiling or _reward_rose(case):
        return None
    since = _since(series, lambda value: value > ceiling)
    return Finding(
        check="entropy-explosion",
        grade=Grade.HARMFUL,
        share=1 - begin / end,
        title="Entropy exploded",
        evidence=_evidence(
            case,
            series,
            since,
            f"from {begin:.2g} to {end:.2g} nats a token, above {EXPLOSION.value:g} times its start from step "
            f"{since} on, "
            "and the reward did not rise",
        ),
        cause="The policy spreads its probability over tokens that do not pay: it forgets what it could do",
        fix="a lower update.lr, a smaller objective.entropy_bonus, a narrower upper bound (objective.eps_high) or a "
        "KL to "
        "the reference (objective.kl.beta) may help",
        view="curves",
    )


def _reward_rose(case: Case) -> bool:
    rewards = [value for _, value in steps_and_values(case.training, "reward/mean")]
    change = change_of_means(rewards)
    if change is not None:
        return change.sigmas > ROSE.value
    return bool(rewards) and rewards[-1] > rewards[0]


def _is_long(series: Sequence[tuple[int, float]]) -> bool:
    """Whether a beginning can be told from an end."""
    return bool(series) and len(series) >= 2 * len(first_tenth(series))


def _ends(series: Sequence[tuple[int, float]]) -> tuple[float, float]:
    begin, end = (statistics.fmean(value for _, value in part) for part in (first_tenth(series), last_tenth(series)))
    return begin, end


def _since(series: Sequence[tuple[int, float]], holds: Callable[[float], bool]) -> int:
    """The first step from which on it holds to the end; the last one where it does not hold there."""
    since = series[-1][0]
    for step, value in reversed(series):
        if not holds(value):
            break
        since = step
    return since


def _evidence(case: Case, series: Sequence[tuple[int, float]], since: int, text: str) -> tuple[Evidence, ...]:
    """With what the bounds did to the entropy until then, where the trace tells."""
    by_bounds = attribution(case, [step for step in case.steps if step <= max(since, series[0][0])])
    return (Evidence(text, Place(step=since)), *([by_bounds] if by_bounds is not None else []))


CHECKS = (
    Check("entropy-collapse", "The policy's entropy is all but gone.", {"collapse": COLLAPSE}, _collapsed),
    Check(
        "entropy-explosion",
        "The policy's entropy multiplies and the reward does not rise.",
        {"explosion": EXPLOSION, "steps": EXPLOSION_STEPS, "sigmas of the reward": ROSE},
        _exploded,
    ),
)
