"""Completions that are cut, and lengths that drift with the reduction that weighs by them."""

from __future__ import annotations

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.doctor.trend import change_of_means, whole_or_end
from dinghai.lens.series import steps_and_values
from dinghai.lens.words import percent

CUT = Threshold(
    0.1, "one completion in ten is scored without its end; well set runs have a few in a hundred", "measured here"
)
DRIFT = Threshold(0.5, "of the first length, in either direction", "arithmetic")
DRIFT_SIGMAS = Threshold(4.0, "standard errors of the difference of two means over steps", "statistics")
WRONG_LONGER = Threshold(1.1, "times the length of those above their group's mean reward", "arithmetic")

# What a token's weight owes to the length of its completion, by reduction.
_WEIGHS_BY_LENGTH = {
    "seq-mean-token-mean": "objective.reduction seq-mean-token-mean divides each completion's gradient by its "
    "length, so "
    "that a long wrong one is punished less for each token than a short one, and a short right one rewarded more "
    "(Dr. GRPO, arXiv 2503.20783)",
    "token-mean": "objective.reduction token-mean gives a completion as much weight as it has tokens, so that long "
    "ones "
    "decide where the policy goes (DAPO, arXiv 2503.14476)",
}


def _cut(case: Case) -> Finding | None:
    share, end = whole_or_end(case.training, "completion/truncated_fraction")
    if share <= CUT.value:
        return None
    when = f" in the {end}" if end else ""
    longest = case.setting("rollout.max_new_tokens")
    limit = f"rollout.max_new_tokens ({longest})" if isinstance(longest, int) else "rollout.max_new_tokens"
    step, worst = max(steps_and_values(case.training, "completion/truncated_fraction"), key=lambda pair: pair[1])
    return Finding(
        check="truncated-completions",
        grade=Grade.HARMFUL if share > 0.5 else Grade.WASTEFUL,
        share=share,
        title="Many completions are cut",
        evidence=(
            Evidence(f"{percent(share)}{when} were cut at {limit} and scored without their end"),
            Evidence(f"most at step {step}: {percent(worst)}", _a_cut_one(case, step)),
        ),
        cause="They are longer than they may be, so that what they lead to is never seen, and mostly scored as wrong",
        fix='try a higher rollout.max_new_tokens; or rollout.overlong "mask", which leaves them out of the loss',
        view="tokens",
    )


def _a_cut_one(case: Case, step: int) -> Place:
    """A completion of that step which was cut, where the trace has one."""
    samples = case.samples(step, ["sample", "group", "finished"]) if step in case.steps else None
    for row in samples.to_pylist() if samples is not None else []:
        if not row["finished"]:
            return Place(step=step, group=row["group"], sample=row["sample"])
    return Place(step=step)


def _drift(case: Case) -> Finding | None:
    series = steps_and_values(case.training, "completion/length_mean")
    change = change_of_means([value for _, value in series])
    reduction = str(case.setting("objective.reduction"))
    if change is None or reduction not in _WEIGHS_BY_LENGTH:
        return None
    first, last, sigmas = change
    if abs(last - first) <= DRIFT.value * first or abs(sigmas) <= DRIFT_SIGMAS.value:
        return None
    grew = last > first
    wrong, right = _lengths_by_reward(case)
    apart = ""
    if wrong is not None and right is not None:
        apart = f"; at the end those above their group's mean reward have {right:.3g}, those below it {wrong:.3g}"
    longer_if_wrong = wrong is not None and right is not None and wrong > WRONG_LONGER.value * right
    step, _ = series[-1]
    return Finding(
        check="length-drift",
        grade=Grade.WASTEFUL if grew and longer_if_wrong else Grade.NOTE,
        share=min(1.0, abs(last - first) / max(first, last)),
        title=f"Completions grow steadily {'longer' if grew else 'shorter'}",
        evidence=(
            Evidence(
                f"from {first:.3g} to {last:.3g} tokens (means of the first and last fifth of the steps){apart}",
                Place(step=step),
            ),
        ),
        cause=_WEIGHS_BY_LENGTH[reduction],
        fix="where the length is not what was asked for, try objective.reduction seq-mean-token-sum-norm, in which "
        "length "
        'has no say, or rollout.overlong "penalize"',
        view="curves",
    )


def _lengths_by_reward(case: Case) -> tuple[float | None, float | None]:
    """Mean length, in the last recorded step, of completions below and above the mean reward of their group."""
    samples = case.samples(case.steps[-1], ["group", "reward", "tokens"]) if case.steps else None
    if samples is None:
        return None, None
    reward_S, tokens_S = (samples[name].to_numpy().astype(np.float64) for name in ("reward", "tokens"))
    _, group_S = np.unique(samples["group"].to_numpy(), return_inverse=True)
    mean_S = (np.bincount(group_S, reward_S) / np.bincount(group_S))[group_S]
    below, above = (tokens_S[which] for which in (reward_S < mean_S - 1e-6, reward_S > mean_S + 1e-6))
    return (float(below.mean()), float(above.mean())) if len(below) and len(above) else (None, None)


CHECKS = (
    Check("truncated-completions", "Completions are cut at their longest length.", {"cut": CUT}, _cut),
    Check(
        "length-drift",
        "Completions grow longer or shorter, while the reduction weighs tokens by length.",
        {"drift": DRIFT, "sigmas": DRIFT_SIGMAS, "wrong ones longer": WRONG_LONGER},
        _drift,
    ),
)
