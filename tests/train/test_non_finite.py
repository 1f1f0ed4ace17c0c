"""No silent NaN: a number that is not finite stops the run before the optimiser step, and is named with its place.

Whatever is poisoned (reward, advantage, log-probs of three policies, value, gradient weight, gradient): the weights are
bit for bit what they were, the last checkpoint is intact, and the run resumes to the bytes of one that never failed.
Run: pytest tests/train/test_non_finite.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import differences, left_behind, resume_tiny, run_tiny
from torch import Tensor

from dinghai.errors import RunFailed
from dinghai.policy.critic import Critic
from dinghai.tasks.rewards import Rewards
from dinghai.trace.reader import TraceReader
from dinghai.train import advantages, backward, loop, run, targets
from dinghai.train.checkpoint import load_latest_checkpoint
from dinghai.train.finite import require_finite_tokens
from dinghai.train.learner import Learner
from dinghai.train.run_parts import RunParts

FAILS_AT = 3  # the step


@dataclass
class Spoiler:
    """Spoils a number once, in step FAILS_AT; remembers the run's parts and the weights as they were then."""

    value: float
    monkeypatch: pytest.MonkeyPatch
    parts: RunParts | None = None
    step: int = 0
    before: dict[str, Tensor] = field(default_factory=dict)

    def watch(self) -> None:
        real = run.train_step

        def train_step(parts: RunParts, step: int, next_prompt: int) -> Any:
            self.parts, self.step = parts, step
            return real(parts, step, next_prompt)

        self.monkeypatch.setattr(run, "train_step", train_step)

    def weights(self) -> dict[str, Tensor]:
        """Of all learners, with their optimisers' state."""
        assert self.parts is not None
        found = {}
        for learner in self.parts.learners:
            for group, tensors in learner.tensors()[0].items():
                found |= {f"{group}/{name}": tensor.clone() for name, tensor in tensors.items()}
        return found

    def due(self) -> bool:
        if self.step != FAILS_AT or self.before:
            return False
        self.before = self.weights()
        return True

    def __call__(self, values: Tensor, place: int) -> Tensor:
        if not self.due():
            return values
        spoiled = values.clone()
        spoiled[place] = self.value
        return spoiled


def spoil_reward(spoiler: Spoiler) -> None:
    real = Rewards.score

    def score(self: Rewards, *arguments: Any) -> Any:
        table = real(self, *arguments)
        return replace(table, total=spoiler(torch.tensor(table.total, dtype=torch.float64), 6).tolist())

    spoiler.monkeypatch.setattr(Rewards, "score", score)


def spoil_advantage(spoiler: Spoiler) -> None:
    real = advantages.group_advantage
    spoiler.monkeypatch.setattr(advantages, "group_advantage", lambda *a, **o: spoiler(real(*a, **o), 6))


def spoil_advantage_of_tokens(spoiler: Spoiler) -> None:
    real = advantages.gae

    def gae(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        advantage_BT, return_BT = real(*arguments, **options)
        if spoiler.due():
            advantage_BT[6, 2] = spoiler.value
        return advantage_BT, return_BT

    spoiler.monkeypatch.setattr(advantages, "gae", gae)


def spoil_log_probs(which: Callable[[Spoiler, Any], bool]) -> Callable[[Spoiler], None]:
    """Of the passes before the updates."""

    def spoil(spoiler: Spoiler) -> None:
        real = targets.score

        def score(policy: Any, *arguments: Any, **options: Any) -> Any:
            logp_N, *rest = real(policy, *arguments, **options)
            return (spoiler(logp_N, 5), *rest) if which(spoiler, policy) else (logp_N, *rest)

        spoiler.monkeypatch.setattr(targets, "score", score)

    return spoil


def is_old(spoiler: Spoiler, policy: Any) -> bool:
    return spoiler.parts is not None and policy is spoiler.parts.policy


def is_reference(spoiler: Spoiler, policy: Any) -> bool:
    return not is_old(spoiler, policy)


def spoil_log_probs_of_an_update(spoiler: Spoiler) -> None:
    real = backward.one_pass

    def one_pass(hidden_NH: Any, weight_VH: Any, target_N: Any, temperature: Any, loss_of: Any, **options: Any) -> Any:
        off_N = spoiler(torch.zeros(len(target_N)), 5)
        out = real(
            hidden_NH, weight_VH, target_N, temperature, lambda rows, logp, h: loss_of(rows, logp + off_N[rows], h),
            **options,
        )  # fmt: skip
        return replace(out, logp_N=out.logp_N + off_N)

    spoiler.monkeypatch.setattr(backward, "one_pass", one_pass)


def spoil_value(with_gradient: bool) -> Callable[[Spoiler], None]:
    def spoil(spoiler: Spoiler) -> None:
        real = Critic.values

        def values(self: Critic, *arguments: Any) -> Tensor:
            value_N = real(self, *arguments)
            return spoiler(value_N, 5) if torch.is_grad_enabled() == with_gradient else value_N

        spoiler.monkeypatch.setattr(Critic, "values", values)

    return spoil


def spoil_gradient(spoiler: Spoiler) -> None:
    real = Learner.clip_gradient

    def clip_gradient(self: Learner) -> Tensor:
        if spoiler.due():
            gradient = next(iter(self.weights.values())).grad
            assert gradient is not None
            gradient.view(-1)[3] = spoiler.value
        return real(self)

    spoiler.monkeypatch.setattr(Learner, "clip_gradient", clip_gradient)


GAE: dict[str, Any] = {"advantage": {"kind": "gae", "critic_warmup": 0}}
KL: dict[str, Any] = {"objective": {"kl": {"beta": 0.1}}}
TOKEN = r"at sample \d+ \(prompt '\d+\+\d+'\), token \d+ \(id \d+\), and at \d+ more"
ADVICE = "the weights are as before this update and the last checkpoint is intact"

CASES = {
    "reward": (spoil_reward, {}, r"the reward is {} at completion 2 of prompt '\d+\+\d+'"),
    "advantage": (spoil_advantage, {}, r"the advantage is {} at sample 6 \(prompt '\d+\+\d+'\), token 0"),
    "advantage of a token": (
        spoil_advantage_of_tokens,
        {"advantage": {**GAE["advantage"], "whiten": False}},
        r"the advantage is {} at sample 6 \(prompt '\d+\+\d+'\), token 2 \(id \d+\), and at 0 more",
    ),
    "logp_old": (spoil_log_probs(is_old), {}, f"logp_old is {{}} {TOKEN}"),
    "logp_ref": (spoil_log_probs(is_reference), KL, f"logp_ref is {{}} {TOKEN}"),
    "logp_new": (spoil_log_probs_of_an_update, {}, f"logp_new is {{}} {TOKEN}"),
    "value": (spoil_value(False), GAE, f"the critic's value is {{}} {TOKEN}"),
    "value with gradient": (spoil_value(True), GAE, f"the critic's value is {{}} {TOKEN}"),
    "gradient": (
        spoil_gradient,
        {},
        r"update 0: the gradient norm of the policy is (nan|inf).*lower the learning rate",
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a run with some settings leaves when nothing is spoiled."""
    known: dict[str, dict[str, Any]] = {}

    def expected(change: dict[str, Any]) -> dict[str, Any]:
        if repr(change) not in known:
            known[repr(change)] = left_behind(run_tiny(tmp_path_factory.mktemp("undisturbed"), "run", change))
        return known[repr(change)]

    return expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", CASES)
def test_it_stops_before_the_step_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Any, case: str, value: float
) -> None:
    spoil, change, message = CASES[case]
    expected = undisturbed(change)
    with monkeypatch.context() as patch:
        spoiler = Spoiler(value, patch)
        spoiler.watch()
        spoil(spoiler)
        with pytest.raises(RunFailed, match=f"^step {FAILS_AT}[:,] .*{message.format(value)}") as caught:
            run_tiny(tmp_path, "spoiled", change)
        assert ADVICE in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        after = spoiler.weights()
        assert all(torch.equal(after[name], tensor) for name, tensor in spoiler.before.items())
    spoiled = tmp_path / "spoiled"
    assert load_latest_checkpoint(spoiled, pytest.fail).step == FAILS_AT - 1
    assert FAILS_AT not in TraceReader(spoiled / "trace").steps()
    resume_tiny(spoiled)
    assert differences(left_behind(spoiled), expected) == []


def test_a_ratio_that_overflows_is_named_by_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All log-probs are finite, yet exp(200) is not: a relapse of infinite weight."""
    real = targets.score

    def score(*arguments: Any, **options: Any) -> Any:
        logp_N, *rest = real(*arguments, **options)
        return (logp_N - 200.0, *rest)

    monkeypatch.setattr(targets, "score", score)
    with pytest.raises(RunFailed, match=f"^step 1: the gradient weight is -inf {TOKEN}"):
        run_tiny(tmp_path)


def test_the_token_that_is_named_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the place of its log-prob, whatever the order of samples and micro-batches."""
    seen: list[Any] = []
    monkeypatch.setattr(
        run, "train_step", lambda parts, step, at: seen.append(parts) or loop.train_step(parts, step, at)
    )
    run_tiny(tmp_path, "run", {"run": {"steps": 1}, "rollout": {"overlong": "mask"}, "cold_start": {"steps": 40}})
    parts = seen[0]
    batch = loop.collect(parts.policy, parts.engine, parts.task, parts.rewards, parts.settings, 1, 0).batch
    chosen = [7, 2, 9, 4]
    for sample in chosen:
        for position in range(int(batch.length_B[sample])):
            value_N = torch.zeros(sum(int(batch.length_B[i]) for i in chosen))
            start = sum(int(batch.length_B[i]) for i in chosen[: chosen.index(sample)])
            value_N[start + position] = math.nan
            token = batch.completions[sample].token_ids[position]
            if not batch.in_loss_B[sample]:
                require_finite_tokens("x", value_N, batch, chosen, 8)
                continue
            place = rf"step 8: x is nan at sample {sample} .*token {position} \(id {token}\), and at 0 more"
            with pytest.raises(RunFailed, match=place):
                require_finite_tokens("x", value_N, batch, chosen, 8)


def test_a_cold_start_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"cold start, step \d+: the gradient is nan .*lower cold_start\.lr"):
        run_tiny(tmp_path, "run", {"cold_start": {"steps": 200, "lr": 1e30}})
