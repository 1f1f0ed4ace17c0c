"""What is done with a batch: learning rates, leaving early, the clip's variants, entropy, the reference, the critic.

Run: pytest tests/train/test_updates.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_runs import QUIET, metrics_of, reward_file, run_tiny, tiny

from dinghai.config.settings import UpdateSettings
from dinghai.trace.reader import TraceReader
from dinghai.train import loop
from dinghai.train.batch import Batch
from dinghai.train.learner import Learner
from dinghai.train.optim import learning_rate

pytestmark = QUIET

EQUAL = "def spread(completions, **others):\n    return [0.25] * len(completions)\n"


def checkpoint_of(run: Path, step: int, group: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / f"step-{step:06d}" / f"{group}.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- learning rate ---------------------------------------------------------------------------------------------------

# 6 steps, 2 of them warm-up, peak 8.
RATES = {
    ("constant", 0): [8, 8, 8, 8, 8, 8],
    ("constant", 2): [4, 8, 8, 8, 8, 8],
    ("linear", 0): [8, 8 * 5 / 6, 8 * 4 / 6, 8 * 3 / 6, 8 * 2 / 6, 8 / 6],
    ("linear", 2): [4, 8, 8, 6, 4, 2],
    ("cosine", 2): [4, 8, 8, 4 + 4 * math.sqrt(0.5), 4, 4 - 4 * math.sqrt(0.5)],
    ("linear", 10): [0.8, 1.6, 2.4, 3.2, 4.0, 4.8],  # the run ends within its warm-up
}


@pytest.mark.parametrize("schedule, warmup", RATES)
def test_learning_rates_by_hand(schedule: Any, warmup: int) -> None:
    update = UpdateSettings(schedule=schedule, warmup=warmup)
    found = [learning_rate(8.0, step, 6, update) for step in range(1, 7)]
    assert found == pytest.approx(RATES[schedule, warmup], abs=1e-12)


def test_the_learning_rate_is_used_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, float]] = []
    real = Learner.step

    def step(self: Learner, lr: float) -> None:
        real(self, lr)
        used.extend((self.name, group["lr"]) for group in self.optimizer.param_groups)

    monkeypatch.setattr(Learner, "step", step)
    run = run_tiny(
        tmp_path,
        "run",
        {"update": {"lr": 0.02, "schedule": "linear", "warmup": 1, "epochs": 1}},
        {"advantage": {"kind": "gae", "critic_lr": 0.1, "critic_warmup": 0}},
    )
    policy = [0.02, 0.02, 0.02 * 2 / 3, 0.02 / 3]
    assert [rate for name, rate in used if name == "policy"] == pytest.approx([r for r in policy for _ in range(2)])
    assert [rate for name, rate in used if name == "critic"] == pytest.approx([5 * r for r in policy for _ in range(2)])
    lines = metrics_of(run)[1:]
    assert [line["lr"] for line in lines] == pytest.approx(policy)
    assert [line["critic/lr"] for line in lines] == pytest.approx([5 * r for r in policy])


# --- leaving a batch early -------------------------------------------------------------------------------------------


def test_target_kl_leaves_the_batch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update sees a KL of 0; the second sees that it has moved, is not applied, and is the last."""
    steps: list[str] = []
    real = Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, lr: steps.append(self.name) or real(self, lr))
    run = run_tiny(tmp_path, "run", {"update": {"target_kl": 1e-7}})
    for line in metrics_of(run)[1:]:
        assert line["left_early"] is True
        assert line["updates"] == len(line["by_update"]) == 2
        assert line["by_update"][0]["kl_old_new_k3"] == 0.0
        assert line["by_update"][1]["kl_old_new_k3"] > 1.5e-7
        assert TraceReader(run / "trace").updates(line["step"]) == [0, 1]
    assert steps == ["policy"] * 4


def test_target_kl_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    plain, bounded = run_tiny(tmp_path, "plain"), run_tiny(tmp_path, "bounded", {"update": {"target_kl": 1e6}})
    assert metrics_of(plain) == metrics_of(bounded)
    assert not any(line["left_early"] for line in metrics_of(plain)[1:])
    assert all(line["updates"] == 4 for line in metrics_of(plain)[1:])


# --- the clip --------------------------------------------------------------------------------------------------------


def test_dual_clip_stops_the_bad_tokens_beyond_it(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", {"objective": {"dual_clip": 1.25}, "update": {"lr": 0.03, "epochs": 4}})
    assert any(line["clip/region/dual_fraction"] > 0 for line in metrics_of(run)[1:])
    reader = TraceReader(run / "trace")
    found = 0
    for step in reader.steps():
        names = reader.names(step).regions
        for token in reader.tokens(step).to_pylist():
            if token["logp_new"] is None:
                continue  # without a signal, and never scored
            ratio = math.exp(token["logp_new"] - token["logp_old"])
            if names[token["region"]] == "dual":
                found += 1
                assert token["advantage"] < 0
                assert ratio > 1.25 - 1e-6
                assert token["weight"] == 0.0
            if token["advantage"] < 0 and ratio > 1.25 + 1e-6:
                assert names[token["region"]] == "dual"
    assert found > 0


def test_the_ratio_of_a_sequence_is_the_same_at_all_its_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = {"eps_low": 0.01, "eps_high": 0.01}
    run = run_tiny(tmp_path, "run", {"objective": {"ratio": "sequence", **bounds}})
    reader = TraceReader(run / "trace")
    stopped = set()
    for update in reader.updates(1):
        weights: dict[int, set[float]] = {}
        for token in reader.tokens(1, update).to_pylist():
            weights.setdefault(token["sample"], set()).add(token["weight"])
        assert all(len(of_sample) == 1 for of_sample in weights.values())
        stopped |= {update for of_sample in weights.values() if of_sample == {0.0}}
    assert stopped, "no sequence was clipped"
    capsys.readouterr()
    run_tiny(tmp_path, "wide", {"run": {"steps": 1}, "objective": {"ratio": "sequence"}})
    assert "warning: " in capsys.readouterr().out, "an epsilon on the scale of tokens is accepted in silence"


def test_the_width_of_the_band_decides_what_is_stopped(tmp_path: Path) -> None:
    shares = []
    for name, eps in (("narrow", 0.01), ("usual", 0.2), ("none", 0.999)):
        line = metrics_of(run_tiny(tmp_path, name, {"objective": {"eps_low": eps, "eps_high": 100 * eps}}))[1]
        shares.append(line["clip/stopped_fraction"])
    assert shares[0] > shares[1] >= shares[2]


# --- entropy, reference, critic --------------------------------------------------------------------------------------


def test_the_entropy_bonus_raises_the_entropy(tmp_path: Path) -> None:
    """Equal rewards: nothing else moves the weights, and no token has a signal, so the trace alone says it."""
    taught = {"cold_start": {"steps": 40, "lr": 0.02}, "rewards": [{"source": reward_file(tmp_path, EQUAL)}]}
    run_tiny(tmp_path, "plain", taught)
    raised = TraceReader(run_tiny(tmp_path, "raised", taught, {"objective": {"entropy_bonus": 0.1}}) / "trace")
    first, last = (raised.tokens(step, 0, ["entropy"])["entropy"].to_numpy().mean() for step in (1, 4))
    assert first < 5.0
    assert last > first + 0.1
    assert same(*(checkpoint_of(tmp_path / "plain", step, "policy") for step in (0, 4)))
    assert not any("entropy" in line for line in metrics_of(tmp_path / "raised")), "a mean over no token"


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 2}}], ids=["all weights", "lora"])
def test_the_reference_is_what_reinforcement_learning_started_from(tmp_path: Path, where: str, model: dict) -> None:
    """After the cold start, that is: the KL to it is exactly 0 at first, and then is not."""
    change = {"model": model, "objective": {"kl": {"beta": 0.05, "where": where}}, "cold_start": {"steps": 10}}
    lines = metrics_of(run_tiny(tmp_path, "run", change))[1:]
    assert lines[0]["by_update"][0]["kl_ref_k3"] == 0.0
    assert lines[-1]["kl_ref_k3"] > 0.0


def test_a_large_beta_keeps_the_policy_near_the_reference(tmp_path: Path) -> None:
    free, held = (
        metrics_of(run_tiny(tmp_path, f"beta-{beta}", {"objective": {"kl": {"beta": beta}}, "run": {"steps": 12}}))
        for beta in (1e-9, 3.0)
    )
    assert held[-1]["kl_ref_k3"] < 0.5 * free[-1]["kl_ref_k3"]


@pytest.mark.parametrize("kind", ["group", "gae"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_is_taken_off_the_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, estimator: str
) -> None:
    """By hand: k1 = d and k3 = exp(-d) - 1 + d with d = log pi_old - log pi_ref, per token, times beta."""
    seen: list[tuple[Batch, loop.Targets]] = []
    real = loop.prepare_targets

    def prepare_targets(run: Any, step: int, batch: Batch, minibatches: Any) -> loop.Targets:
        seen.append((batch, real(run, step, batch, minibatches)))
        return seen[-1][1]

    monkeypatch.setattr(loop, "prepare_targets", prepare_targets)
    advantage = {"group": {"scale": "none"}, "gae": {"lam": 1.0, "whiten": False, "critic_warmup": 0}}[kind]
    beta = 0.5
    kl = {"beta": beta, "where": "reward", "estimator": estimator}
    run_tiny(tmp_path, "run", {"objective": {"kl": kl}, "advantage": {"kind": kind, **advantage}})
    batch, targets = seen[-1]
    assert targets.logp_ref_N is not None
    difference_N = (targets.logp_old_N - targets.logp_ref_N).double()
    assert difference_N.abs().max() > 0.01
    penalty_N = beta * (difference_N if estimator == "k1" else (-difference_N).exp() - 1 + difference_N)
    pieces = penalty_N.split(batch.length_B.tolist())
    if kind == "group":
        rewards = [float(reward - piece.sum()) for reward, piece in zip(batch.reward_B, pieces, strict=True)]
        means = [sum(rewards[g * 4 : g * 4 + 4]) / 4 for g in range(3)]
        expected = [reward - means[i // 4] for i, reward in enumerate(rewards) for _ in range(batch.length_B[i])]
        assert targets.advantage_N.tolist() == pytest.approx(expected, abs=1e-5)
    else:
        assert targets.return_N is not None
        expected = [
            float(reward - piece[t:].sum())
            for reward, piece in zip(batch.reward_B, pieces, strict=True)
            for t in range(len(piece))
        ]
        assert targets.return_N.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_critic_warms_up_alone(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", {"advantage": {"kind": "gae", "critic_warmup": 2}})
    policy, critic = ([checkpoint_of(run, step, name) for step in range(5)] for name in ("policy", "critic"))
    assert same(policy[0], policy[1])
    assert same(policy[1], policy[2])
    assert not same(policy[2], policy[3])
    assert all(not same(critic[step], critic[step + 1]) for step in range(4))


def test_the_critic_learns_a_constant_return(tmp_path: Path) -> None:
    change = {"advantage": {"kind": "gae", "critic_lr": 0.02}, "rewards": [{"source": reward_file(tmp_path, EQUAL)}]}
    errors = [line["critic/value_error_rms"] for line in metrics_of(run_tiny(tmp_path, "run", change))[1:]]
    assert errors[0] > 0.1
    assert errors[-1] < 0.5 * errors[0]


def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[tuple[float, float]] = []
    real = Learner.clip_gradient

    def clip_gradient(self: Learner) -> torch.Tensor:
        before = real(self)
        after = torch.cat([p.grad.flatten() for p in self.masters.values() if p.grad is not None]).norm()
        norms.append((float(before), float(after)))
        return before

    monkeypatch.setattr(Learner, "clip_gradient", clip_gradient)
    run_tiny(tmp_path, "clipped", {"update": {"max_grad_norm": 1e-3}})
    assert all(before > 1e-3 and after <= 1e-3 * (1 + 1e-4) for before, after in norms)
    norms.clear()
    run_tiny(tmp_path, "free", {"update": {"max_grad_norm": None}})
    assert all(after == pytest.approx(before, rel=1e-5) for before, after in norms)


def test_steps_too_small_for_bfloat16_are_not_lost(tmp_path: Path) -> None:
    """The optimiser changes float32 copies: they move at every step, the bfloat16 weights once that adds up."""
    run = run_tiny(tmp_path, "run", {"model": {"dtype": "bfloat16"}, "update": {"lr": 1e-6}})
    masters = [checkpoint_of(run, step, "policy") for step in range(5)]
    assert all(tensor.dtype == torch.float32 for tensor in masters[0].values())
    assert all(not same(masters[step], masters[step + 1]) for step in range(4))
    final = safetensors.torch.load_file(run / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}
    assert all(torch.equal(final[name], masters[4][name].bfloat16()) for name in final)


def test_a_run_moves_the_policy_towards_its_reward(tmp_path: Path) -> None:
    """The least that a trainer must do: a reward for a byte makes the byte likelier."""
    likes = "def spread(completions, **others):\n    return [text.count('1') for text in completions]\n"
    change = {"rewards": [{"source": reward_file(tmp_path, likes)}], "cold_start": {"steps": 20}}
    more = {"run": {"steps": 25}, "rollout": {"prompts": 8}, "checkpoint": {"every": 100}}
    lines = metrics_of(run_tiny(tmp_path, "run", change, more))[1:]
    early, late = (sum(line["reward/mean"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert late > 1.5 * early + 0.5


def test_tiny_settings_are_the_ones_that_are_used(tmp_path: Path) -> None:
    assert tiny(tmp_path, "x", {"update": {"lr": 1}}, {"update": {"lr": 2}}).update.lr == 2


@pytest.mark.parametrize("where", ["loss", "reward"])
def test_beta_follows_the_kl_after_each_step_and_is_used(tmp_path: Path, where: str) -> None:
    """Each step's β is what the rule makes of the one before and of that step's KL; and another β, another policy."""
    fixed = {"objective": {"kl": {"beta": 0.5, "where": where}}}
    moving = {"objective": {"kl": {"controller": "adaptive", "target": 10.0}}}  # far above: β is halved each time
    one = run_tiny(tmp_path, "fixed", fixed)
    other = run_tiny(tmp_path, "moving", fixed, moving)
    assert [line["kl_ref_beta"] for line in metrics_of(one)[1:]] == [0.5, 0.5, 0.5, 0.5]
    assert [line["kl_ref_beta"] for line in metrics_of(other)[1:]] == [0.5, 0.25, 0.125, 0.0625]
    assert same(checkpoint_of(one, 1, "policy"), checkpoint_of(other, 1, "policy"))
    assert not same(checkpoint_of(one, 2, "policy"), checkpoint_of(other, 2, "policy"))


def test_the_proportional_controller_moves_beta_by_its_gain(tmp_path: Path) -> None:
    kl = {"beta": 0.5, "controller": "proportional", "target": 10.0, "gain": 1.0}
    run = run_tiny(tmp_path, "run", {"objective": {"kl": kl}})
    assert [line["kl_ref_beta"] for line in metrics_of(run)[1:]] == pytest.approx([0.5, 0.4, 0.32, 0.256])


def test_the_correction_of_the_kl_changes_its_gradient(tmp_path: Path) -> None:
    runs = [
        run_tiny(tmp_path, name, {"objective": {"kl": {"beta": 0.5, "correction": name}}})
        for name in ("none", "on-policy", "ratio")
    ]
    last = [checkpoint_of(run, 4, "policy") for run in runs]
    assert not same(last[0], last[1])
    assert not same(last[1], last[2])
