"""Rewards that never vary or cancel, groups too easy or too hard, and wrong completions that grow long, by the trace.

Run: pytest tests/lens/doctor/test_checks_of_rewards.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import case_of, every, make_run, write_rewards

from dinghai.lens.doctor.checks import lengths, rewards, signal
from dinghai.lens.doctor.finding import Finding, Grade

COUNT = 96  # completions, in twelve groups
TWO: dict[str, Any] = {
    "rewards": [{"source": "task", "weight": 1.0}, {"source": "my.py:brevity", "weight": 2.0}],
}
RANDOM = np.random.default_rng(1)
VARIED = RANDOM.integers(0, 2, COUNT).astype(float)
OTHER = RANDOM.random(COUNT)


def looks(module: Any, folder: Path) -> list[Finding]:
    """What the checks of a module find."""
    case = case_of(folder)
    return [finding for check in module.CHECKS if (finding := check.look(case)) is not None]


def with_rewards(folder: Path, parts: dict[str, np.ndarray], config: dict[str, Any] = TWO) -> list[Finding]:
    make_run(folder, {}, config)
    write_rewards(folder, parts)
    return looks(rewards, folder)


def test_two_rewards_that_differ_are_in_order(tmp_path: Path) -> None:
    assert with_rewards(tmp_path, {"task": VARIED, "brevity": OTHER}) == []


def test_rewards_that_cancel_are_named_with_the_worst_group(tmp_path: Path) -> None:
    """Weights included: twice the second is what the first has lost."""
    opposed = (1 - VARIED) / 2
    opposed[40:48] = VARIED[40:48]  # a group in which they agree
    (found,) = with_rewards(tmp_path, {"task": VARIED, "brevity": opposed})
    assert (found.check, found.grade) == ("rewards-cancel", Grade.HARMFUL)
    varied = [group for group in range(12) if np.ptp(VARIED[8 * group : 8 * group + 8]) > 0]
    assert found.share == pytest.approx((len(varied) - (5 in varied)) / len(varied))
    assert "of the groups whose completions some reward tells apart, the total hardly does" in found.evidence[0].text
    assert (
        found.evidence[1].text.startswith("brevity and task in group ") or "task and brevity" in found.evidence[1].text
    )
    assert found.evidence[1].place.step == 20
    assert found.evidence[1].place.group in varied


def test_rewards_that_cancel_wholly_are_not_called_constant(tmp_path: Path) -> None:
    make_run(tmp_path, every({"reward/std": 0.0}), TWO)
    write_rewards(tmp_path, {"task": VARIED, "brevity": -VARIED / 2})
    assert [one.check for one in looks(rewards, tmp_path)] == ["rewards-cancel"]


def test_rewards_that_cancel_between_groups_only_do_not(tmp_path: Path) -> None:
    """What is equal within a group has no say in its advantages."""
    by_group = np.repeat(np.arange(12) / 12, 8)
    assert [one.check for one in with_rewards(tmp_path, {"task": VARIED + by_group, "brevity": -by_group / 2})] == []


def test_opposed_rewards_of_unequal_weight_do_not_cancel(tmp_path: Path) -> None:
    assert with_rewards(tmp_path, {"task": VARIED, "brevity": -VARIED / 8}) == []


def test_a_part_that_never_varies_is_named(tmp_path: Path) -> None:
    (found,) = with_rewards(tmp_path, {"task": VARIED, "brevity": np.full(COUNT, 0.5)})
    assert found.sentence.startswith(
        "The reward brevity never varies: each of 96 recorded completions scored 0.5, at the weight 2. Look"
    )


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_part_without_weight_may_be_constant(tmp_path: Path, weight: float) -> None:
    config = {"rewards": [TWO["rewards"][0], {"source": "my.py:brevity", "weight": weight}]}
    found = with_rewards(tmp_path, {"task": VARIED, "brevity": np.full(COUNT, 0.5)}, config)
    assert len(found) == (weight != 0)


def test_names_of_rewards_are_made_safe(tmp_path: Path) -> None:
    (found,) = with_rewards(tmp_path, {"task": VARIED, "\x1b[31m": np.full(COUNT, 0.5)})
    assert "\\x1b[31m" in found.title
    assert "\x1b" not in found.title


# --- too easy, too hard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "cause", "told"),
    [(1.0, "too easy", "10 score the highest reward of the run"), (0.0, "too hard", "10 the lowest")],
)
def test_groups_without_signal_are_told_apart(tmp_path: Path, reward: float, cause: str, told: str) -> None:
    total = np.full(COUNT, reward)
    total[:16] = [0.0, 1.0] * 8  # two groups with a signal
    make_run(tmp_path, every({"groups/no_signal_fraction": 10 / 12}))
    write_rewards(tmp_path, {"task": total})
    (found,) = looks(signal, tmp_path)
    assert cause in found.cause
    assert told in found.evidence[1].text
    assert found.evidence[1].place.group == 2


def test_a_policy_that_has_lost_what_it_could_do_is_not_given_easier_prompts(tmp_path: Path) -> None:
    total = np.zeros(COUNT)
    total[0] = 1.0
    make_run(tmp_path, {step: {"groups/no_signal_fraction": 0.95} for step in range(2, 21)})
    write_rewards(tmp_path, {"task": total})
    (found,) = looks(signal, tmp_path)
    assert found.grade == Grade.WASTEFUL  # it follows from something graver
    assert "has lost what it could do" in found.cause
    assert "checkpoint" in found.fix


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "grade"), [(9, Grade.WASTEFUL), (3, Grade.NOTE)])
def test_wrong_completions_that_grow_long_are_told_from_right_ones(tmp_path: Path, wrong: int, grade: Grade) -> None:
    make_run(tmp_path, {step: {"completion/length_mean": 2.0 + 0.2 * step} for step in range(1, 21)})
    write_rewards(tmp_path, {"task": VARIED}, lengths=np.where(VARIED == 1, 4, wrong))
    (found,) = looks(lengths, tmp_path)
    assert (found.check, found.grade) == ("length-drift", grade)
    assert f"those above their group's mean reward have 4, those below it {wrong}" in found.evidence[0].text
    assert "2503.20783" in found.cause


def test_a_completion_that_was_cut_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path, every({"completion/truncated_fraction": 0.2}) | {20: {"completion/truncated_fraction": 0.5}})
    write_rewards(tmp_path, {"task": VARIED})
    (found,) = looks(lengths, tmp_path)
    assert (found.evidence[1].place.step, found.evidence[1].place.sample) == (20, COUNT - 1)
