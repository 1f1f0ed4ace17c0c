"""What looks wrong in a run's settings and metrics is said with its step and figure, alone, and is not said of runs in
which it is not so.

Run: pytest tests/lens/doctor/test_checks_of_metrics.py
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from faults import CONFIG, STEPS, Changes, case_of, every, findings, make_run

from dinghai.lens.doctor.checks import bounds, course, entropy, lengths, signal, steps
from dinghai.lens.doctor.diagnose import diagnose
from dinghai.lens.doctor.finding import Grade
from dinghai.lens.doctor.trend import accuracy_noise, change_of_means

CUT = {"completion/truncated_fraction": 0.25}
GSPO = {"objective": {"rule": "gspo", "ratio": "sequence", "parameters": {"eps_low": 3e-4, "eps_high": 4e-4}}}
STILL = {
    "clip/band_fraction": 0.0,
    "clip/stopped_fraction": 0.0,
    "clip/gradient_removed/total": 0.0,
    "clip/gradient_removed/escaped": 0.0,
    "clip/region/relapse_fraction": 0.0,
}


def two_updates(kl: float) -> dict[str, Any]:
    return {"by_update": [{"update": 0, "kl_old_new_k3": 0.0}, {"update": 1, "kl_old_new_k3": kl}]}


def test_nothing_is_wrong_with_a_sound_run(tmp_path: Path) -> None:
    assert findings(tmp_path, {}) == []


# name -> changed steps, changed settings, check, grade, the sentence
WRONG: dict[str, tuple[Changes, dict[str, Any], str, Grade, str]] = {
    "not finite": (
        {7: {"entropy": float("nan")}, 9: {"reward/mean": float("inf")}},
        {},
        "not-finite",
        Grade.INVALID,
        "A number is not finite: at step 7 entropy is nan. Look there first",
    ),
    "not finite in a token": (
        {7: {"clip/nonfinite_tokens": 1.0}},
        {},
        "not-finite",
        Grade.INVALID,
        "A number is not finite: at step 7 1 token had a log-prob, an advantage or a weight that is not finite. Look",
    ),
    "held-out fell, reward rose": (
        {4: {"held_out/accuracy": 0.8}, 20: {"held_out/accuracy": 0.5}}
        | {step: {"reward/mean": 0.9} for step in range(5, 20)},
        {},
        "reward-hacking",
        Grade.HARMFUL,
        "A reward rises while the task gets worse: held-out accuracy fell from its best, 80.0% at step 4, to 50.0% at "
        "step 20 while the reward rose from 0.5 to 0.82. Read completions",
    ),
    "held-out fell while a part of the reward rose": (
        {
            step: {"reward/brevity/mean": 0.1 if step < 10 else 0.6}
            | ({"held_out/accuracy": 0.8 if step == 4 else 0.5} if step in (4, 20) else {})
            for step in range(1, 21)
        },
        {},
        "reward-hacking",
        Grade.HARMFUL,
        "A reward rises while the task gets worse: held-out accuracy fell from its best, 80.0% at step 4, to 50.0% at "
        "step 20 while the reward brevity rose from 0.1 to 0.6. Read completions",
    ),
    "the task's reward fell while another rose": (
        {
            step: {"reward/task/mean": 0.6 - step / 40, "reward/brevity/mean": 0.1 + step / 40}
            for step in range(1, STEPS + 1)
        },
        {},
        "reward-hacking",
        Grade.HARMFUL,
        "A reward rises while the task gets worse: the reward brevity rose from 0.163 to 0.562 while that of the "
        "task fell "
        "from 0.537 to 0.137 (means of the first and last fifth of the steps). Read completions",
    ),
    "held-out fell": (
        {4: {"held_out/accuracy": 0.8}, 20: {"held_out/accuracy": 0.5}},
        {},
        "held-out-fell",
        Grade.HARMFUL,
        "Held-out accuracy fell: from its best, 80.0% at step 4, to 50.0% at step 20. A lower update.lr",
    ),
    "uneven ratios": (
        {8: {"clip/ess_fraction": 0.31}, 9: {"clip/ess_fraction": 0.45}},
        {},
        "uneven-ratios",
        Grade.HARMFUL,
        "A few tokens outweigh the others: at step 8 ratios were so uneven that the tokens with a signal counted "
        "like 31.0% "
        "of them (less than 50.0% in 2 of 20 steps). Try a lower update.lr, fewer updates a batch, or "
        "update.target_kl.",
    ),
    "steps too large": (
        every(two_updates(0.05)) | {8: two_updates(0.5)},
        {},
        "learning-rate-too-high",
        Grade.HARMFUL,
        "The learning rate is too high for the bounds: one update moves log r by 1 nats at step 8 (root mean "
        "square), and "
        "by more than 0.3 in 20 of 20 steps. Lower update.lr (0.0001), threefold",
    ),
    "entropy collapses": (
        {step: {"entropy": 0.04 if step > 9 else 0.2} for step in range(6, 21)} | {12: {"entropy": 0.06}},
        {},
        "entropy-collapse",
        Grade.HARMFUL,
        "Entropy collapsed: from 0.5 to 0.04 nats a token, below a tenth of its start from step 13 on. An "
        "objective.entropy_bonus, a wider upper bound",
    ),
    "entropy explodes": (
        {step: {"entropy": 0.5 * 1.2 ** (step - 5)} for step in range(6, 21)},
        {},
        "entropy-explosion",
        Grade.HARMFUL,
        "Entropy exploded: from 0.5 to 5.5 nats a token, above 3 times its start from step 12 on, and the reward "
        "did not "
        "rise. A lower update.lr",
    ),
    "entropy explodes, until no token has a signal": (
        {step: {"reward/mean": 0.5 / step, "entropy": 0.5 * 1.4**step if step < 7 else None} for step in range(1, 21)},
        {},
        "entropy-explosion",
        Grade.HARMFUL,
        "Entropy exploded: from 0.84 to 3.2 nats a token",
    ),
    "a leap of the norm": (
        {8: {"grad_norm_mean": 30.0}},
        {},
        "gradient-norm-spike",
        Grade.NOTE,
        "The gradient's norm leapt: once, to 30 at step 8 (median 0.7). Look at that step's completions",
    ),
    "leaps of the norm in single updates": (
        {8: {"by_update": [{"update": 0, "grad_norm": 0.7}, {"update": 1, "grad_norm": 40.0}]}}
        | {
            step: {"by_update": [{"update": 0, "grad_norm": 0.7}, {"update": 1, "grad_norm": 0.8}]}
            for step in range(9, 20)
        }
        | {20: {"by_update": [{"update": 0, "grad_norm": 9.5}]}},
        {},
        "gradient-norm-spike",
        Grade.NOTE,
        "The gradient's norm leapt: in 2 steps, to 40 at step 8 (median 0.8). Look",
    ),
    "too much taken": (
        every({"clip/gradient_removed/total": 0.6}),
        {},
        "takes-too-much",
        Grade.WASTEFUL,
        "More than half of the gradient was taken away: 60.0% of it, over all steps. Try fewer updates a batch, a "
        "lower "
        "update.lr or wider bounds.",
    ),
    "nearly all taken": (
        every({"clip/gradient_removed/total": 0.97}),
        {},
        "takes-too-much",
        Grade.HARMFUL,
        "Nearly all of the gradient was taken away: 97.0% of it, over all steps. Try",
    ),
    "more than half taken by a rule of sequences": (
        every({"clip/gradient_removed/total": 0.6}),
        GSPO,
        "takes-too-much",
        Grade.NOTE,
        "More than half of the gradient was taken away: 60.0% of it, over all steps. Try",
    ),
    "too many stopped": (
        every({"clip/stopped_fraction": 0.4}),
        {},
        "takes-too-much",
        Grade.WASTEFUL,
        "Many tokens were stopped: 40.0% of those with a signal, over all steps. Try",
    ),
    "too much dropped": (
        every({"clip/gradient_removed/total": 0.6, "clip/gradient_removed/dropped": 0.5}),
        {},
        "takes-too-much",
        Grade.INVALID,
        "More than half of the gradient was taken away: 60.0% of it, over all steps; 50.0% by the rollout "
        "correction. Look "
        "at correction/ in metrics.jsonl before anything else",
    ),
    "no signal": (
        every({"groups/no_signal_fraction": 0.75}),
        {},
        "no-signal",
        Grade.WASTEFUL,
        "Most groups have no signal: 75.0% of the groups (every advantage was 0, as when all completions score alike). "
        "Try others, a larger rollout.group_size, or rollout.dynamic_sampling.",
    ),
    "no signal at the end": (
        {step: {"groups/no_signal_fraction": 0.9} for step in range(16, 21)},
        {"rollout": {"dynamic_sampling": True}},
        "no-signal",
        Grade.WASTEFUL,
        "Most groups have no signal: 90.0% of the groups of the last 5 steps (every advantage was 0, as when all "
        "completions score alike). Try others, a larger rollout.group_size.",
    ),
    "no signal left": (
        {step: {"groups/no_signal_fraction": 0.9} for step in range(16, 20)}
        | {20: {"groups/no_signal_fraction": 0.9, "held_out/accuracy": 0.97}},
        {},
        "no-signal",
        Grade.NOTE,
        "Most groups have no signal: 90.0% of the groups of the last 5 steps (every advantage was 0, as when all "
        "completions score alike). Stop here, or go on with harder prompts.",
    ),
    "cut": (
        every(CUT),
        {},
        "truncated-completions",
        Grade.WASTEFUL,
        "Many completions are cut: 25.0% were cut at rollout.max_new_tokens (256) and scored without their end. Try a "
        "higher rollout.max_new_tokens",
    ),
    "cut at the end": (
        dict.fromkeys(range(16, 21), CUT),
        {},
        "truncated-completions",
        Grade.WASTEFUL,
        "Many completions are cut: 25.0% in the last 5 steps were cut at rollout.max_new_tokens (256) and scored",
    ),
    "lengths grow": (
        {step: {"completion/length_mean": 100.0 + 10 * step} for step in range(1, 21)},
        {},
        "length-drift",
        Grade.NOTE,
        "Completions grow steadily longer: from 125 to 285 tokens (means of the first and last fifth of the steps). "
        "Where "
        "the length is not what was asked for, try objective.reduction seq-mean-token-sum-norm",
    ),
    "lengths shrink": (
        {step: {"completion/length_mean": 100.0 - 4 * step} for step in range(1, 21)},
        {"objective": {"reduction": "token-mean"}},
        "length-drift",
        Grade.NOTE,
        "Completions grow steadily shorter: from 90 to 26 tokens (means of the first and last fifth of the steps). "
        "Where",
    ),
    "one update a batch": (
        every(STILL | {"clip/log_ratio_abs_max": 0.0}),
        {"update": {"epochs": 1, "minibatches": 1}},
        "epsilon-cannot-act",
        Grade.NOTE,
        "The rule's bounds cannot act: each batch of rollouts got one update, so that r was 1 at every token of 20 "
        "steps. "
        "Set update.epochs or update.minibatches above 1 for epsilon to matter",
    ),
    "no ratio near a bound": (
        every(STILL | {"clip/log_ratio_abs_max": 0.02}) | {9: STILL | {"clip/log_ratio_abs_max": 0.05}},
        {},
        "epsilon-cannot-act",
        Grade.NOTE,
        "The rule's bounds never acted: in 20 steps no ratio passed one; the largest |log r| of a token was 0.05; the "
        "nearest bound lies at 0.18. Leave it so",
    ),
    "the reward never varies": (
        every({"reward/std": 0.0, "reward/mean": 0.0, "reward/task/mean": 0.0}),
        {},
        "reward-never-varies",
        Grade.HARMFUL,
        "The reward never varies: each completion of 20 steps scored 0. Score some completions by hand",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_alone_with_its_figure(tmp_path: Path, name: str) -> None:
    changed, config, check, grade, sentence = WRONG[name]
    found = findings(tmp_path, changed, config)
    assert [one.check for one in found] == [check]
    assert found[0].sentence.startswith(sentence), found[0].sentence
    assert found[0].grade == grade
    assert 0 <= found[0].share <= 1
    assert found[0].cause


def test_a_bound_in_the_unit_of_another_ratio(tmp_path: Path) -> None:
    """It comes before what follows from it: everything is clipped, or nothing."""
    tiny = {"objective": {"parameters": {"eps_low": 3e-4, "eps_high": 4e-4}}}
    much = every({"clip/band_fraction": 0.8, "clip/stopped_fraction": 0.5, "clip/gradient_removed/total": 0.7})
    found = findings(tmp_path / "tiny", much, tiny)
    assert [(one.check, one.grade) for one in found] == [
        ("wrong-unit", Grade.HARMFUL),
        ("takes-too-much", Grade.WASTEFUL),
    ]
    assert found[0].evidence[0].text.startswith("eps_low = 0.0003 is on another scale than the ratio of a token")
    assert found[0].evidence[-1].text == "in 20 steps 80.0% of the tokens with a signal lay beyond a bound"
    huge = {"objective": {"rule": "gspo", "ratio": "sequence", "parameters": {"eps_low": 0.2, "eps_high": 0.2}}}
    for share, checks in ((0.002, ["wrong-unit"]), (0.0, ["wrong-unit", "epsilon-cannot-act"])):
        found = findings(tmp_path / f"huge{share}", every(STILL | {"clip/band_fraction": share}), huge)
        assert [one.check for one in found] == checks
        assert found[0].evidence[0].text.startswith("eps_low = 0.2 is on another scale than the ratio of a sequence")
        assert found[0].grade == Grade.WASTEFUL


def test_a_bound_of_a_ratio_is_not_suspect_in_its_own_unit(tmp_path: Path) -> None:
    for name, bound in (("grpo", 0.05), ("gspo", 4e-3)):
        ratio = "token" if name == "grpo" else "sequence"
        own = {"objective": {"rule": name, "ratio": ratio, "parameters": {"eps_low": bound, "eps_high": bound}}}
        assert findings(tmp_path / name, every({"clip/band_fraction": 0.5}), own) == []


def test_the_policy_hardly_moves(tmp_path: Path) -> None:
    found = findings(tmp_path, every(STILL | {"clip/log_ratio_abs_max": 2e-5}))
    assert [one.check for one in found] == ["learning-rate-too-low", "epsilon-cannot-act"]
    assert "the largest |log r| of any token in 18 steps is 2e-05 nats" in found[0].sentence
    assert "raise update.lr (0.0001)" in found[0].fix


UNHARMED: dict[str, tuple[Changes, dict[str, Any]]] = {
    "entropy falls where the task is solved": (
        {step: {"entropy": 0.01} for step in range(6, 21)} | {20: {"entropy": 0.01, "held_out/accuracy": 0.98}},
        {},
    ),
    "entropy and reward rise": (
        {step: {"entropy": 0.5 * 1.2 ** (step - 5), "reward/mean": step / 20} for step in range(6, 21)},
        {},
    ),
    "a held-out accuracy within its noise": (
        {4: {"held_out/accuracy": 0.80}, 20: {"held_out/accuracy": 0.75, "reward/mean": 0.9}},
        {},
    ),
    "a held-out accuracy of unknown size": (
        {4: {"held_out/accuracy": 0.80}, 20: {"held_out/accuracy": 0.3}},
        {"task": {"held_out": None}},
    ),
    "a norm far above the median that needs no clipping": (
        {8: {"grad_norm_mean": 9.0}},
        {"update": {"max_grad_norm": 10.0}},
    ),
    "norms of nothing": (every({"grad_norm_mean": 0.0}) | {8: {"grad_norm_mean": 0.9}}, {}),
    "one step with uneven ratios": ({8: {"clip/ess_fraction": 0.2}}, {}),
    "one step with a wide spread": ({8: two_updates(0.5)}, {}),
    "lengths grow where length has no say": (
        {step: {"completion/length_mean": 100.0 + 10 * step} for step in range(1, 21)},
        {"objective": {"reduction": "seq-mean-token-sum-norm"}},
    ),
    "lengths of one step": ({8: {"completion/length_mean": 900.0}}, {}),
    "a rule without bounds that never acts": (
        every(STILL),
        {"objective": {"rule": "reinforce", "parameters": {"eps_low": None, "eps_high": None}}},
    ),
    "every threshold met but not passed": (
        every(
            {
                "clip/gradient_removed/total": bounds.REMOVED.value,
                "clip/stopped_fraction": bounds.STOPPED.value,
                "clip/ess_fraction": steps.UNEVEN.value,
                "completion/truncated_fraction": lengths.CUT.value * 0.999,
                "groups/no_signal_fraction": signal.NO_SIGNAL.value - 0.01,
                "entropy": 0.5,
                **two_updates(steps.SPREAD.value**2 / 2 * 0.999),
            }
        )
        | {20: {"entropy": 0.5 * (entropy.COLLAPSE.value + 0.01)}},
        {},
    ),
}


@pytest.mark.parametrize("name", UNHARMED)
def test_what_is_not_wrong_is_not_said(tmp_path: Path, name: str) -> None:
    changed, config = UNHARMED[name]
    assert findings(tmp_path, changed, config) == []


def test_several_troubles_come_in_order(tmp_path: Path) -> None:
    troubles = CUT | {"clip/nonfinite_tokens": 2.0, "clip/gradient_removed/total": 0.95, "reward/std": 0.0}
    found = findings(tmp_path, every(troubles))
    assert [one.check for one in found] == [
        "not-finite",
        "reward-never-varies",
        "takes-too-much",
        "truncated-completions",
    ]


def test_settings_and_metrics_may_lack_anything(tmp_path: Path) -> None:
    """Every check looks, and none fails, at a run of another program or of an older version."""
    (tmp_path / "config.json").write_text(json.dumps({"objective": 3, "update": {"lr": "high"}, "rewards": ["x"]}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "clip/band_fraction": 0.9, "by_update": [{}]}\n')
    diagnose(case_of(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    assert [one.check for one in diagnose(case_of(tmp_path))] == []


def test_the_noise_of_a_difference_of_accuracies() -> None:
    assert accuracy_noise(0.5, 0.5, 100) == pytest.approx(0.0707, abs=1e-4)  # √(2 · 0.25 / 100)
    assert accuracy_noise(0.0, 1.0, 100) == 0.0


def test_a_change_of_means() -> None:
    """(5.5 - 1.5) / √((0.5 + 0.5) / 2): two values at either end... of ten, which are too few."""
    assert change_of_means([1.0, 2.0] * 5) is None
    change = change_of_means([1.0, 2.0, 3.0, *[9.0] * 9, 5.0, 6.0, 7.0])
    assert change is not None
    assert (change.first, change.last) == (2.0, 6.0)
    assert change.sigmas == pytest.approx(4 / (2 / 3) ** 0.5)
    assert change_of_means([1.0] * 15).sigmas == 0.0  # type: ignore[union-attr]


# --- ended -----------------------------------------------------------------------------------------------------------


def aged(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for file in folder.iterdir():
        os.utime(file, (then, then))


@pytest.mark.parametrize(("quiet", "slowest", "ended"), [(10, 1, False), (200, 1, True), (200, 30, False)])
def test_a_run_that_ended_early_says_how_to_continue(tmp_path: Path, quiet: float, slowest: float, ended: bool) -> None:
    make_run(tmp_path, every({"seconds/step": slowest}), {"run": {"steps": 40}})
    aged(tmp_path, quiet)
    found = [one.sentence for one in diagnose(case_of(tmp_path))]
    expected = (
        "The run ended early: after step 20 of 40 planned ones. "
        f"`dinghai resume {tmp_path}` continues it from its last checkpoint."
    )
    assert found == ([expected] if ended else [])
    assert diagnose(case_of(tmp_path), early=True) == []


def test_a_run_that_never_made_a_step_is_not_called_wrong(tmp_path: Path) -> None:
    make_run(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_text("")
    aged(tmp_path, 1e6)
    assert diagnose(case_of(tmp_path)) == []


def test_a_dead_run_says_what_killed_it(tmp_path: Path) -> None:
    """At once, and not when its files are old; a number that is not finite with its token."""
    make_run(tmp_path, {}, {"run": {"steps": 40}})
    (tmp_path / "failure.json").write_text('{"message": "the disk is full"}')
    (ended,) = diagnose(case_of(tmp_path))
    assert ended.sentence.startswith(
        "The run ended early: after step 20 of 40 planned ones: the disk is full. `dinghai"
    )
    place = {"step": 21, "update": 1, "group": 3, "sample": 29, "position": 5, "token": 77}
    told = {"message": "step 21: logp_new is nan at sample 29", "tensor": "logp_new"}
    (tmp_path / "failure.json").write_text(json.dumps(told | place))
    found = diagnose(case_of(tmp_path))
    assert [one.check for one in found] == ["not-finite", "ended-early"]
    assert found[0].evidence[0].text == "the run stopped because step 21: logp_new is nan at sample 29"
    where = found[0].evidence[0].place
    assert (where.step, where.update, where.group, where.sample, where.position) == (21, 1, 3, 29, 5)


@pytest.mark.parametrize("text", ["", "[]", '{"message": 3}', '{"message": "x", "step": "y", "tensor": 1}', "{" * 99])
def test_a_damaged_account_of_a_failure_is_no_failure_of_the_doctor(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, {})
    (tmp_path / "failure.json").write_text(text)
    diagnose(case_of(tmp_path))


def test_each_threshold_can_be_passed(tmp_path: Path) -> None:
    """The faults above cover every check of these modules."""
    covered = {check for _, _, check, _, _ in WRONG.values()} | {"wrong-unit", "learning-rate-too-low", "ended-early"}
    for module in (bounds, course, entropy, lengths, signal, steps):
        assert {check.name for check in module.CHECKS} <= covered, module.__name__
    assert CONFIG["run"]["steps"] == STEPS
