"""Rewards that never vary, and rewards that cancel each other.

Shapes: S completions of the steps that are read, P parts of the reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.series import is_finite
from dinghai.lens.words import counted, percent
from dinghai.text import safe

STEPS = Threshold(2, "one batch may score alike by chance", "statistics")
COMPLETIONS = Threshold(64, "fewer may score alike by chance", "statistics")
KEPT = Threshold(
    0.1, "of the variance that the largest part has within a group is left in the total: the rest cancels", "arithmetic"
)
GROUPS = Threshold(0.25, "of the groups whose parts tell completions apart lose it in the total", "arithmetic")
ALIKE = 1e-6  # times the size of the rewards: what differs less is the rounding of float32


@dataclass(frozen=True, eq=False)
class Parts:
    """The weighted parts of the reward of all completions of the recorded steps that are read."""

    names: list[str]
    value_PS: np.ndarray  # float64, weight included
    weight_P: np.ndarray
    group_S: np.ndarray  # distinct over steps
    place_S: list[Place]


def _parts(case: Case) -> Parts | None:
    """None where the reward is of one part, where there is no trace, or where the settings do not tell the weights."""
    given = case.config.get("rewards")
    if not isinstance(given, list) or len(given) < 2:
        return None
    tables = [(step, table) for step in case.steps if (table := case.samples(step)) is not None]
    if not tables:
        return None
    names = [name for name in tables[0][1].column_names if name.startswith("reward/")]
    weights = [one.get("weight") for one in given if isinstance(one, dict)]
    if len(names) != len(weights) or not all(isinstance(weight, int | float) for weight in weights):
        return None
    tables = [(step, table) for step, table in tables if set(names) <= set(table.column_names)]
    value_PS = np.concatenate([[table[n].to_numpy() for n in names] for _, table in tables], axis=1, dtype=np.float64)
    weight_P = np.array(weights, dtype=np.float64)
    place_S = [
        Place(step=step, group=group, sample=sample)
        for step, table in tables
        for group, sample in zip(table["group"].to_pylist(), table["sample"].to_pylist(), strict=True)
    ]
    _, group_S = np.unique([(place.step, place.group) for place in place_S], axis=0, return_inverse=True)
    return Parts([n.removeprefix("reward/") for n in names], value_PS * weight_P[:, None], weight_P, group_S, place_S)


# --- never varies ------------------------------------------------------------------------------------------------


def _never_varies(case: Case) -> Finding | None:
    rows = [row for row in case.training if is_finite(row, "reward/std") and is_finite(row, "reward/mean")]
    if len(rows) < STEPS.value or any(row["reward/std"] > ALIKE * max(1, abs(row["reward/mean"])) for row in rows):
        return None
    if _cancel(case) is not None:  # which is why
        return None
    means = {round(row["reward/mean"], 6) for row in rows}
    value = f"{rows[0]['reward/mean']:.3g}" if len(means) == 1 else "the same as the others of its batch"
    return Finding(
        check="reward-never-varies",
        grade=Grade.HARMFUL,
        share=1.0,
        title="The reward never varies",
        evidence=(
            Evidence(f"each completion of {counted(len(rows), 'step')} scored {value}", Place(step=rows[0]["step"])),
        ),
        cause="Advantages compare completions with each other: where all score alike each is 0, and nothing is "
        "learned. "
        "A reward that finds no answer in any completion, or that looks at nothing they differ in, does this",
        fix="score some completions by hand with the rewards of the run; if these are right, the prompts are far too "
        "hard "
        "or too easy",
        view="tokens",
    )


def _part_never_varies(case: Case) -> Finding | None:
    parts = _parts(case)
    if parts is None or parts.value_PS.shape[1] < COMPLETIONS.value:
        return None
    constant_P = (np.ptp(parts.value_PS, axis=1) == 0) & (parts.weight_P != 0)
    if not constant_P.any() or constant_P[parts.weight_P != 0].all():
        return None  # where all are, the total never varies, which is said elsewhere
    first = int(np.argmax(constant_P))
    name, value = parts.names[first], parts.value_PS[first, 0] / parts.weight_P[first]
    return Finding(
        check="reward-part-never-varies",
        grade=Grade.NOTE,
        share=float(constant_P.sum() / len(constant_P)),
        title=f"The reward {safe(name)} never varies",
        evidence=(
            Evidence(
                f"each of {parts.value_PS.shape[1]:,} recorded completions scored {value:.3g}, at the weight "
                f"{parts.weight_P[first]:g}",
                parts.place_S[0],
            ),
        ),
        cause="It adds the same to every completion, which advantages do not see",
        fix="look at whether it finds what it looks for; if it is right, leave it out",
        view="tokens",
    )


# --- cancel ------------------------------------------------------------------------------------------------------


def _cancel(case: Case) -> Finding | None:
    parts = _parts(case)
    if parts is None:
        return None
    variance_PG = np.array([_variance_by(parts.group_S, value_S) for value_S in parts.value_PS])
    total_G = _variance_by(parts.group_S, parts.value_PS.sum(axis=0))
    largest_G = variance_PG.max(axis=0)
    varies_G = largest_G > (ALIKE * np.abs(parts.value_PS).max()) ** 2
    lost_G = varies_G & (total_G < KEPT.value * largest_G)
    if not varies_G.any() or lost_G.sum() < GROUPS.value * varies_G.sum():
        return None
    share = float(lost_G.sum() / varies_G.sum())
    ratio_G = np.where(lost_G, total_G / np.where(largest_G > 0, largest_G, 1), np.inf)
    row = int(np.argmax(parts.group_S == int(np.argmin(ratio_G))))
    two = np.sort(np.argsort(-variance_PG[:, parts.group_S[row]])[:2])
    names = " and ".join(safe(parts.names[place]) for place in two)
    return Finding(
        check="rewards-cancel",
        grade=Grade.HARMFUL,
        share=share,
        title="Rewards cancel each other",
        evidence=(
            Evidence(
                f"in {percent(share)} of the groups whose completions some reward tells apart, the total hardly does",
            ),
            Evidence(
                f"in group {parts.place_S[row].group} of step {parts.place_S[row].step} the total of {names} keeps "
                f"{percent(float(ratio_G.min()))} of the larger one's variance",
                Place(step=parts.place_S[row].step, group=parts.place_S[row].group),
            ),
        ),
        cause="What one reward gives another takes away in the same completions, so their sum has nothing to teach",
        fix="change a weight of `--reward`, so that what matters wins; or leave one of them out",
        view="tokens",
    )


def _variance_by(group_S: np.ndarray, value_S: np.ndarray) -> np.ndarray:
    """Variance within each group, [G]."""
    count_G = np.bincount(group_S)
    mean_G = np.bincount(group_S, value_S) / count_G
    return np.bincount(group_S, (value_S - mean_G[group_S]) ** 2) / count_G


CHECKS = (
    Check("reward-never-varies", "All completions score alike, always.", {"steps": STEPS}, _never_varies),
    Check(
        "reward-part-never-varies",
        "A part of the reward is the same for all completions, though it has a weight.",
        {"completions": COMPLETIONS},
        _part_never_varies,
        early=False,
        of_tokens=True,
    ),
    Check(
        "rewards-cancel",
        "Parts of the reward tell completions of a group apart, and their sum does not.",
        {"variance kept": KEPT, "groups": GROUPS},
        _cancel,
        of_tokens=True,
    ),
)
