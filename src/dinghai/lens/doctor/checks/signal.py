"""Groups without signal, told apart by their rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.doctor.trend import whole_or_end
from dinghai.lens.series import first_tenth, is_finite, last_tenth, steps_and_values
from dinghai.lens.words import percent

NO_SIGNAL = Threshold(
    0.5, "of the groups: more than half of the sampling is paid for and teaches nothing", "arithmetic"
)
STEPS = Threshold(4, "the groups of fewer steps are too few to tell", "statistics")


def _no_signal(case: Case) -> Finding | None:
    if len(case.training) < STEPS.value or not _reward_varies(case):
        return None
    share, end = whole_or_end(case.training, "groups/no_signal_fraction")
    if share < NO_SIGNAL.value:
        return None
    when = f" of the {end}" if end else ""
    first = Evidence(
        f"{percent(share)} of the groups{when} (every advantage was 0, as when all completions score alike)"
    )
    kinds = _kinds(case)
    others = "" if case.table("rollout").get("dynamic_sampling") else ", or rollout.dynamic_sampling"
    title, cause, fix = "Most groups have no signal", "The prompts are too easy or too hard for most samples", "others"
    if kinds["easy"] > 2 * kinds["hard"]:
        cause, fix = "The prompts are too easy: nearly all completions get the highest reward", "harder ones"
    elif kinds["hard"] > 2 * kinds["easy"]:
        cause, fix = "The prompts are too hard: hardly any completion gets more than the lowest reward", "easier ones"
    grade, fix = Grade.WASTEFUL, f"try {fix}, a larger rollout.group_size{others}"
    if kinds["hard"] > 2 * kinds["easy"] and _had_signal(case):
        cause = "The policy has lost what it could do: hardly any completion gets more than the lowest reward any more"
        fix = "mend what took it away, which other findings tell; else go back to a checkpoint, with a lower update.lr"
    if case.solved:
        cause, grade = "The task is as good as solved, so further steps teach little", Grade.NOTE
        fix = "stop here, or go on with harder prompts"
    return Finding(
        check="no-signal",
        grade=grade,
        share=share,
        title=title,
        evidence=(first, *_told(case, kinds)),
        cause=cause,
        fix=fix,
        view="curves",
    )


def _reward_varies(case: Case) -> bool:
    """Where it does not at all, that is the fault, and another check's."""
    known = [row["reward/std"] for row in case.training if is_finite(row, "reward/std")]
    return not known or any(known)


def _had_signal(case: Case) -> bool:
    begin = steps_and_values(first_tenth(case.training), "groups/no_signal_fraction")
    return any(share < NO_SIGNAL.value for _, share in begin)


def _kinds(case: Case) -> dict[str, int]:
    """Groups of the last recorded steps that score alike: how many get the highest reward, the lowest, or another."""
    rewards = [rewards for step in case.steps for _, rewards in _groups(case, step)]
    found = dict.fromkeys(("easy", "hard", "between"), 0)
    if not rewards:
        return found
    lowest, highest = min(min(one) for one in rewards), max(max(one) for one in rewards)
    if lowest == highest:  # of the recorded ones
        return found
    for step in last_tenth(case.steps):
        for _, one in _groups(case, step):
            if min(one) == max(one):
                at_end = "hard" if one[0] == lowest else "easy" if one[0] == highest else "between"
                found[at_end] += 1
    return found


def _groups(case: Case, step: int) -> list[tuple[int, Sequence[float]]]:
    """The recorded groups of a step with the rewards of their completions."""
    samples = case.samples(step, ["group", "reward"])
    if samples is None:
        return []
    group_S, reward_S = (samples[name].to_numpy() for name in ("group", "reward"))
    return [(int(group), reward_S[group_S == group].tolist()) for group in np.unique(group_S)]


def _told(case: Case, kinds: dict[str, int]) -> list[Evidence]:
    if not sum(kinds.values()):
        return []
    said = {
        "easy": "score the highest reward of the run throughout",
        "hard": "the lowest",
        "between": "another one",
    }
    parts = ", ".join(f"{number} {said[kind]}" for kind, number in kinds.items() if number)
    step = case.steps[-1]
    alike = next((group for group, one in _groups(case, step) if min(one) == max(one)), None)
    return [Evidence(f"of those in the last recorded steps, {parts}", Place(step=step, group=alike))]


CHECKS = (
    Check(
        "no-signal",
        "Most groups have no signal: too easy, too hard, or solved.",
        {"groups": NO_SIGNAL, "steps": STEPS},
        _no_signal,
    ),
)
