"""What looks wrong is said with its step and figure, and is not said of runs in which it is not so."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from test_summary import make_run

from dinghai.errors import InputError
from dinghai.lens import summarize
from dinghai.lens.concerns import THRESHOLDS, accuracy_noise
from dinghai.lens.noise import Noise

STEPS = 20

# A run in which nothing is wrong, with the settings that the sentences speak of.
SOUND: dict[str, Any] = {
    "reward/mean": 0.5,
    "entropy": 0.5,
    "tokens/loss": 1000,
    "tokens/signal": 800,
    "clip/stopped_fraction": 0.02,
    "clip/gradient_removed/total": 0.2,
    "clip/gradient_removed/escaped": 0.2,
    "clip/region/relapse_fraction": 0.004,
    "clip/kl_old_new_k3": 0.005,
    "clip/ess_fraction": 0.99,
    "clip/nonfinite_tokens": 0.0,
    "kl_ref_k3": 0.1,
    "groups/no_signal_fraction": 0.2,
    "completion/truncated_fraction": 0.01,
    "grad_norm_mean": 0.7,
}
CONFIG: dict[str, Any] = {
    "run": {"steps": STEPS},
    "task": {"held_out": 100},
    "rollout": {"max_new_tokens": 256, "dynamic_sampling": False, "top_p": 1.0, "top_k": 0},
    "update": {"epochs": 2, "minibatches": 2, "max_grad_norm": 1.0},
    "objective": {"rule": "grpo", "ratio": "token", "parameters": {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": None}},
}
CUT = {"completion/truncated_fraction": 0.25}


def found(folder: Path, changed: dict[int, dict[str, Any]], config: dict[str, Any] | None = None) -> list[str]:
    """The concerns of the sound run with some steps changed; steps are given by number."""
    rows = [{"step": 0, "held_out/accuracy": 0.4}]
    rows += [{"step": step} | SOUND | changed.get(step, {}) for step in range(1, STEPS + 1)]
    return summarize(make_run(folder, rows, CONFIG | (config or {}))).concerns


def every(changed: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return dict.fromkeys(range(1, STEPS + 1), changed)


def test_nothing_is_wrong_with_a_sound_run(tmp_path: Path) -> None:
    assert found(tmp_path, {}) == []


WRONG: dict[str, tuple[dict[int, dict[str, Any]], dict[str, Any], str]] = {
    "not finite": (
        {7: {"entropy": float("nan")}, 9: {"reward/mean": float("inf")}},
        {},
        "At step 7 entropy is nan: look there first, since what follows rests on it.",
    ),
    "not finite in a token": (
        {7: {"clip/nonfinite_tokens": 1.0}},
        {},
        "At step 7 1 token had a log-prob, an advantage or a weight that is not finite: look there first.",
    ),
    "held-out fell, reward rose": (
        {4: {"held_out/accuracy": 0.8}, 20: {"held_out/accuracy": 0.5}}
        | {step: {"reward/mean": 0.9} for step in range(5, 20)},
        {},
        "Held-out accuracy fell from its best, 80.0% at step 4, to 50.0% at step 20 while the reward rose from 0.5 to "
        "0.82: what pays in training does not carry over; more varied prompts, or a KL to the reference, may help.",
    ),
    "held-out fell": (
        {4: {"held_out/accuracy": 0.8}, 20: {"held_out/accuracy": 0.5}},
        {},
        "Held-out accuracy fell from its best, 80.0% at step 4, to 50.0% at step 20: a lower update.lr or fewer "
        "updates a batch may hold it.",
    ),
    "far from the reference": (
        {step: {"kl_ref_k3": 1.0 + step / 10} for step in range(11, 21)},
        {},
        "KL to the reference passed 1 nat a token at step 11 and reached 3 at step 20: the policy has run away from "
        "where it began; try a higher objective.kl.beta or a lower update.lr.",
    ),
    "moved too far": (
        {3: {"clip/kl_old_new_k3": 0.2}, 8: {"clip/kl_old_new_k3": 0.34, "clip/ess_fraction": 0.1}},
        {},
        "Within the batch of step 8 the policy moved 0.34 nats a token away from the one that sampled (more than 0.1 "
        "in 2 of 20 steps): try a lower update.lr, fewer updates a batch, or update.target_kl.",
    ),
    "uneven ratios": (
        {8: {"clip/ess_fraction": 0.31}},
        {},
        "At step 8 ratios were so uneven that the tokens with a signal counted like 31.0% of them: try a lower "
        "update.lr, fewer updates a batch, or update.target_kl.",
    ),
    "relapse": (
        every({"clip/region/relapse_fraction": 0.08}) | {6: {"clip/region/relapse_fraction": 0.09}},
        {},
        "10.1% of the tokens with a signal lay in relapse (bad tokens that became likelier), most of them at step 6: "
        "the updates overshoot; try a lower update.lr, or a dual_clip.",
    ),
    "relapse, with a dual clip": (
        every({"clip/region/relapse_fraction": 0.08}),
        {"objective": {"ratio": "token", "parameters": {"eps_low": 0.2, "dual_clip": 3.0}}},
        "10.0% of the tokens with a signal lay in relapse (bad tokens that became likelier), most of them at step 1: "
        "the updates overshoot; try a lower update.lr.",
    ),
    "entropy": (
        {step: {"entropy": 0.04 if step > 9 else 0.2} for step in range(6, 21)} | {12: {"entropy": 0.06}},
        {},
        "Entropy fell from 0.5 to 0.04 nats a token, below a tenth of its start from step 13 on: the policy hardly "
        "explores any more; an objective.entropy_bonus, a wider upper bound or a lower update.lr may help.",
    ),
    "a leap of the norm": (
        {8: {"grad_norm_mean": 30.0}},
        {},
        "The gradient's norm leapt once, to 30 at step 8 (median 0.7): look at that step's completions; a lower "
        "update.max_grad_norm bounds what one step can do.",
    ),
    "leaps of the norm in single updates": (
        {8: {"by_update": [{"update": 0, "grad_norm": 0.7}, {"update": 1, "grad_norm": 40.0}]}}
        | {
            step: {"by_update": [{"update": 0, "grad_norm": 0.7}, {"update": 1, "grad_norm": 0.8}]}
            for step in range(9, 20)
        }
        | {20: {"by_update": [{"update": 0, "grad_norm": 9.5}]}},
        {},
        "The gradient's norm leapt in 2 steps, to 40 at step 8 (median 0.8): look at that step's completions; a lower "
        "update.max_grad_norm bounds what one step can do.",
    ),
    "too much taken": (
        every({"clip/gradient_removed/total": 0.6}),
        {},
        "More than half of the gradient was taken away (60.0%): much of each batch is computed for nothing; try fewer "
        "updates a batch, a lower update.lr or wider bounds.",
    ),
    "too many stopped": (
        every({"clip/stopped_fraction": 0.4}),
        {},
        "40.0% of the tokens with a signal were stopped: much of each batch is computed for nothing; try fewer updates "
        "a batch, a lower update.lr or wider bounds.",
    ),
    "too much dropped": (
        every({"clip/gradient_removed/total": 0.6, "clip/gradient_removed/dropped": 0.5}),
        {},
        "More than half of the gradient was taken away (60.0%), most of it by the rollout correction: the engine and "
        "the trainer disagree about many tokens; look at correction/ in metrics.jsonl before anything else.",
    ),
    "no signal": (
        every({"groups/no_signal_fraction": 0.75}),
        {},
        "75.0% of the groups had no signal (every advantage was 0, as when all completions score alike): the prompts "
        "are too easy or too hard for most samples to teach anything; try others, or rollout.dynamic_sampling.",
    ),
    "no signal at the end": (
        {step: {"groups/no_signal_fraction": 0.9} for step in range(16, 21)},
        {"rollout": {"dynamic_sampling": True}},
        "90.0% of the groups of the last 5 steps had no signal (every advantage was 0, as when all completions score "
        "alike): the prompts are too easy or too hard for most samples to teach anything; try others.",
    ),
    "no signal left": (
        {step: {"groups/no_signal_fraction": 0.9} for step in range(16, 20)}
        | {20: {"groups/no_signal_fraction": 0.9, "held_out/accuracy": 0.97}},
        {},
        "90.0% of the groups of the last 5 steps had no signal (every advantage was 0, as when all completions score "
        "alike): the task is as good as solved, so further steps teach little; harder prompts would.",
    ),
    "cut": (
        every(CUT),
        {},
        "25.0% of the completions were cut at rollout.max_new_tokens (256) and scored without their end; try a higher "
        "one.",
    ),
    "cut at the end": (
        dict.fromkeys(range(16, 21), CUT),
        {"rollout": {}},
        "25.0% of the completions in the last 5 steps were cut at rollout.max_new_tokens and scored without their end; "
        "try a higher one.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_alone_with_its_figure(tmp_path: Path, name: str) -> None:
    changed, config, expected = WRONG[name]
    assert found(tmp_path, changed, config) == [expected]


UNHARMED: dict[str, tuple[dict[int, dict[str, Any]], dict[str, Any]]] = {
    "entropy falls where the task is solved": (
        {step: {"entropy": 0.01} for step in range(6, 21)} | {20: {"entropy": 0.01, "held_out/accuracy": 0.98}},
        {},
    ),
    "a held-out accuracy within its noise": (
        {4: {"held_out/accuracy": 0.80}, 20: {"held_out/accuracy": 0.75, "reward/mean": 0.9}},
        {},
    ),
    "a held-out accuracy of unknown size": (
        {4: {"held_out/accuracy": 0.80}, 20: {"held_out/accuracy": 0.3}},
        {"task": {}},
    ),
    "a norm far above the median that needs no clipping": (
        {8: {"grad_norm_mean": 9.0}},
        {"update": {"max_grad_norm": 10.0}},
    ),
    "norms of nothing": (every({"grad_norm_mean": 0.0}) | {8: {"grad_norm_mean": 0.9}}, {}),
    "relapse of sequences": (
        every({"clip/region/relapse_fraction": 0.08}),
        {"objective": {"ratio": "sequence", "parameters": {"eps_low": 3e-4}}},
    ),
    "one step far from the reference": ({8: {"kl_ref_k3": 7.0}}, {}),
    "every threshold met but not passed": (
        every(
            {
                "clip/gradient_removed/total": THRESHOLDS["removed"].value,
                "clip/stopped_fraction": THRESHOLDS["stopped"].value,
                "clip/region/relapse_fraction": THRESHOLDS["relapse"].value * 0.799,
                "clip/kl_old_new_k3": THRESHOLDS["kl_step"].value,
                "clip/ess_fraction": THRESHOLDS["ess"].value,
                "kl_ref_k3": THRESHOLDS["kl_reference"].value,
                "completion/truncated_fraction": THRESHOLDS["cut"].value * 0.999,
                "groups/no_signal_fraction": THRESHOLDS["no_signal"].value - 0.01,
            }
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", UNHARMED)
def test_what_is_not_wrong_is_not_said(tmp_path: Path, name: str) -> None:
    changed, config = UNHARMED[name]
    assert found(tmp_path, changed, config) == []


def test_several_troubles_come_in_order(tmp_path: Path) -> None:
    concerns = found(tmp_path, every(CUT | {"clip/nonfinite_tokens": 2.0, "kl_ref_k3": 3.0}))
    assert [one.split()[0] for one in concerns] == ["At", "KL", "25.0%"]


def test_each_threshold_gives_its_reason() -> None:
    assert all(len(threshold.why) > 20 and threshold.value > 0 for threshold in THRESHOLDS.values())


def test_the_noise_of_a_difference_of_accuracies() -> None:
    assert accuracy_noise(0.5, 0.5, 100) == pytest.approx(0.0707, abs=1e-4)  # √(2 · 0.25 / 100)
    assert accuracy_noise(0.0, 1.0, 100) == 0.0


# --- ended early -----------------------------------------------------------------------------------------------------


def aged(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for file in folder.iterdir():
        os.utime(file, (then, then))


@pytest.mark.parametrize(("quiet", "slowest", "ended"), [(10, 1, False), (200, 1, True), (200, 30, False)])
def test_a_run_that_ended_early_says_how_to_continue(tmp_path: Path, quiet: float, slowest: float, ended: bool) -> None:
    rows = [{"step": step, "seconds/step": slowest} for step in (1, 2)]
    make_run(tmp_path, rows, {"run": {"steps": 40}})
    aged(tmp_path, quiet)
    expected = [f"The run ended after step 2 of 40 planned ones: `dinghai resume {tmp_path}` continues it."]
    assert summarize(tmp_path).concerns == (expected if ended else [])


def test_a_run_that_never_made_a_step_has_no_concerns(tmp_path: Path) -> None:
    make_run(tmp_path, [], {"run": {"steps": 40}})
    aged(tmp_path, 1e6)
    assert summarize(tmp_path).concerns == []


# --- bounds within the noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q95", "of", "said"),
    [
        (0.3, "tokens", True),
        (0.1822, "tokens", False),  # ln 1.2 = 0.1823 is the nearest bound
        (0.1824, "sequences", True),
    ],
)
def test_bounds_within_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, q95: float, of: str, said: bool
) -> None:
    monkeypatch.setattr("dinghai.lens.summary.noise_floor", lambda *_: Noise(median=0.01, q95=q95, of=of))
    expected = (
        f"The nearest bound of the rule, 0.18 from r = 1 in log r, lies within the noise: with the same weights the "
        f"engine and the trainer differ by up to {q95:.2g} on 95% of the {of}, so what passes the bound is partly "
        "chance; try a wider one, or float32 in model.dtype and rollout.dtype."
    )
    assert found(tmp_path, {}) == ([expected] if said else [])


def test_the_bound_is_the_one_that_the_rule_itself_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boundaries = [{"advantage": 1, "log_ratio": x} for x in (-3.0, 0.0004, 0.0)]
    monkeypatch.setattr("dinghai.lens.rule_facts.load_rule_facts", lambda _: {"boundaries": boundaries})
    monkeypatch.setattr("dinghai.lens.summary.noise_floor", lambda *_: Noise(median=0.0, q95=0.0005, of="sequences"))
    assert found(tmp_path, {})[0].startswith("The nearest bound of the rule, 0.0004 from r = 1")


def test_a_rule_without_bounds_has_none_in_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.lens.rule_facts.load_rule_facts", lambda _: {"boundaries": []})
    monkeypatch.setattr("dinghai.lens.summary.noise_floor", lambda *_: Noise(median=0.1, q95=9.0, of="tokens"))
    assert found(tmp_path, {}) == []


def test_a_damaged_account_of_the_rule_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_: Path) -> None:
        raise InputError("damaged")

    monkeypatch.setattr("dinghai.lens.rule_facts.load_rule_facts", damaged)
    assert len(found(tmp_path, every(CUT))) == 1
