"""Each shortcut of the updates by itself, all and none give the same gradients and the same statistics.

One step of four updates on the same rollouts, some groups of which agree. Between the updates the weights are moved by
the same noise in every variant, so that gradients are compared at the same weights and ratios leave the band.
Run: pytest tests/train/test_shortcuts.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_runs import QUIET, code_of, run_tiny, tiny
from torch import Tensor, nn

from dinghai.config.settings import UpdateSettings
from dinghai.objective import RULES, PolicyLoss
from dinghai.ops.fold import TorchKernel
from dinghai.policy import scoring
from dinghai.policy.builtin import build_tokenizer
from dinghai.policy.reading import Reading
from dinghai.policy.scoring import TokenSequence
from dinghai.trace import TraceReader
from dinghai.train import loop
from dinghai.train.cold_start import cold_start
from dinghai.train.collect import Collected, collect
from dinghai.train.learner import Learner, gradient_buffer
from dinghai.train.setup import Beginning

pytestmark = QUIET

NONE = {
    "packing": False,
    "shared_prompts": False,
    "one_pass_head": False,
    "skip_no_signal": False,
    "old_log_probs": "score",
}
ALL = {
    "packing": True,
    "shared_prompts": True,
    "one_pass_head": True,
    "skip_no_signal": True,
    "old_log_probs": "first-update",
}
ALONE = {
    "packing": {"packing": True},
    "shared prompts": {"packing": True, "shared_prompts": True},
    "one pass": {"one_pass_head": True},
    "skip": {"skip_no_signal": True},
    "first update": {"old_log_probs": "first-update"},
}
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {"objective": {"rule": "dapo"}},
    "gspo": {"objective": {"rule": "gspo", "eps_low": 0.01, "eps_high": 0.01}},
    "cispo": {"objective": {"rule": "cispo"}},
    "gmpo": {"objective": {"rule": "gmpo", "parameters": {"eps_low": 0.05, "eps_high": 0.05}}},
    "dro": {"objective": {"rule": "dro"}},
    "kl_cov": {"objective": {"rule": "kl_cov"}},
    "kl in the loss": {"objective": {"kl": {"beta": 0.1}}},
    "kl in the reward": {"objective": {"kl": {"beta": 0.1, "where": "reward"}}},
    "entropy": {"objective": {"entropy_bonus": 0.05}},
    "correction": {"objective": {"corrections": {"tis": {"cap": 1.01}}}, "rollout": {"top_p": 0.7}},
    "critic": {"advantage": {"kind": "gae", "critic_warmup": 0}},
    "masked": {"rollout": {"overlong": "mask"}},
    "one constant": {"objective": {"reduction": "seq-mean-token-sum-norm"}},
}
# The weight of DRO is A less a multiple of log r, a difference of log-probs in which their last digit (2e-7) shows.
TOLERANCE = {"dro": 5e-6}
SCORES_ALL = {"dro", "kl_cov", "kl in the loss", "kl in the reward", "entropy", "critic"}
COMMON = {
    "rollout": {"prompts": 6, "max_new_tokens": 12},
    "update": {"micro_batch_tokens": 150},
    "trace": {"enabled": False},
}


@dataclass
class Outcome:
    """What a step left: the gradient of each weight at each update, before its norm is clipped, and the metrics."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    sequences_read: int = 0


class Steps:
    """Steps on the same rollouts, from the same weights."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *changes: dict[str, Any],
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.folder, self.monkeypatch, self.changes, self.weights = folder, monkeypatch, changes, weights
        self.collected: Collected | None = None

    def __call__(self, shortcuts: dict[str, Any], *changes: dict[str, Any]) -> Outcome:
        settings = tiny(self.folder, "x", COMMON, *self.changes, *changes, {"update": {"shortcuts": shortcuts}})
        beginning = Beginning(settings, code_of(settings))
        if self.weights is not None:
            beginning.policy.model.load_state_dict(self.weights)
        outcome = Outcome()
        noise = torch.Generator().manual_seed(0)

        def clip_gradient(learner: Learner) -> Tensor:
            gradients = {
                f"{learner.name}/{name}": gradient
                for name, weight in learner.weights.items()
                if (gradient := _gradient_of(weight)) is not None
            }
            outcome.gradients.append(gradients)
            return torch.zeros(())

        def step(learner: Learner, lr: float) -> None:
            with torch.no_grad():
                for weight in learner.weights.values():
                    weight.add_(0.01 * torch.randn(weight.shape, generator=noise))

        with self.monkeypatch.context() as patch:
            patch.setattr(Learner, "clip_gradient", clip_gradient)
            patch.setattr(Learner, "step", step)
            read = scoring.read_states

            def counted(hidden: Any, sequences: list[TokenSequence], *others: Any) -> Any:
                outcome.sequences_read += len(sequences)
                return read(hidden, sequences, *others)

            patch.setattr(scoring, "read_states", counted)
            patch.setattr(loop, "collect", lambda *a: self._collect(*a))
            record, _ = loop.train_step(beginning.parts(self.folder), 1, 0)
        outcome.metrics = record.finish()
        return outcome

    def _collect(self, *arguments: Any) -> Collected:
        """Rollouts are sampled once. Of six groups the completions of two, then four, get equal rewards."""
        if self.collected is None:
            self.collected = collect(*arguments)
            batch = self.collected.batch
            equal = torch.tensor([group in (0, 3, 4) for group in batch.groups])
            batch.reward_B[:] = torch.arange(batch.samples) % 3
            batch.reward_B[equal] = 0.5
        return self.collected


def _gradient_of(weight: Tensor) -> Tensor | None:
    return None if weight.grad is None else weight.grad.clone()


def assert_same_gradients(one: Outcome, other: Outcome, tolerance: float) -> None:
    """The norm of the difference over the norm, of all weights together, at each update."""
    assert len(one.gradients) == len(other.gradients) >= 4
    for ours, theirs in zip(one.gradients, other.gradients, strict=True):
        assert ours.keys() == theirs.keys()
        size = torch.cat([g.flatten() for g in theirs.values()]).double().norm()
        off = torch.cat([(ours[n] - theirs[n]).flatten() for n in theirs]).double().norm()
        assert size > 0
        assert off <= tolerance * size


def assert_same_metrics(one: Outcome, other: Outcome, tolerance: float) -> None:
    """Counts and shares of tokens are equal; what is a sum of rounded numbers agrees to `tolerance`."""
    pairs = [(one.metrics, other.metrics), *zip(one.metrics["by_update"], other.metrics["by_update"], strict=True)]
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            counts = name.startswith(("tokens/", "clip/region/", "clip/effect/", "region/", "effect/", "updates"))
            if counts or "stopped_fraction" in name or "band_fraction" in name or name.endswith("tokens"):
                assert ours[name] == value, name
            elif isinstance(value, float) and not name.startswith("seconds/"):
                assert ours[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of the built-in model after a cold start, so that completions differ in length and some end."""
    settings = tiny(tmp_path_factory.mktemp("taught"), "x", {"cold_start": {"steps": 40, "lr": 0.02}})
    beginning = Beginning(settings, code_of(settings))
    cold_start(beginning.policy, beginning.task, settings, lambda step, steps, loss: None)
    return beginning.policy.model.state_dict()


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with grouped queries, norms of queries and keys, and a tied head."""
    folder = tmp_path_factory.mktemp("qwen3")
    config = transformers.Qwen3Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=256, eos_token_id=256,
        pad_token_id=257,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer(256).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_each_shortcut_changes_no_gradient_and_no_statistic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: dict[str, Tensor], case: str
) -> None:
    steps = Steps(tmp_path, monkeypatch, CASES[case], weights=taught)
    plain = steps(NONE)
    assert 0 < plain.metrics["tokens/signal"] < plain.metrics["tokens/loss"] or case == "critic"
    assert plain.metrics["clip/log_ratio_abs_max"] > 0.05, "the updates do not move the ratio: nothing is proved"
    for name, shortcut in ({"all": ALL} | ALONE).items():
        found = steps(NONE | shortcut)
        exact = name == "first update"
        assert_same_gradients(found, plain, 0.0 if exact else TOLERANCE.get(case, 1e-6))
        assert_same_metrics(found, plain, 0.0 if exact else 1e-6)
        if name == "skip":
            assert (found.sequences_read < plain.sequences_read) == (case not in SCORES_ALL)
        if exact:
            assert (found.sequences_read < plain.sequences_read) == (case != "kl in the reward")


@pytest.mark.parametrize("case", ["grpo", "gspo", "kl in the loss"])
def test_in_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qwen3: Path, case: str) -> None:
    model = {"model": {"path": str(qwen3), "threads": 1}}
    steps = Steps(tmp_path, monkeypatch, CASES[case], model)
    plain = steps(NONE)
    for shortcut in (ALL, ALONE["shared prompts"], ALONE["one pass"]):
        found = steps(NONE | shortcut)
        assert_same_gradients(found, plain, 1e-6)
        assert_same_metrics(found, plain, 1e-6)


@pytest.mark.parametrize("case", ["grpo", "gspo", "correction", "masked"])
def test_skipping_is_exact_where_micro_batches_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: dict[str, Tensor], case: str
) -> None:
    """Every sample by itself: what is left does the same arithmetic, and no bit differs."""
    alone = {"update": {"micro_batch_tokens": 1}}
    steps = Steps(tmp_path, monkeypatch, CASES[case], alone, weights=taught)
    plain, skipping = steps(ALL | {"skip_no_signal": False}), steps(ALL)
    assert skipping.sequences_read < plain.sequences_read
    assert_same_gradients(skipping, plain, 0.0)
    assert_same_metrics(skipping, plain, 0.0)


@pytest.mark.parametrize("case", ["grpo", "gmpo", "kl_cov", "correction"])
def test_old_log_probs_for_nothing_are_exact_beside_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: dict[str, Tensor], case: str
) -> None:
    steps = Steps(tmp_path, monkeypatch, CASES[case], weights=taught)
    free, scored = steps(ALL), steps(ALL | {"old_log_probs": "score"})
    assert_same_gradients(free, scored, 0.0)
    assert_same_metrics(free, scored, 0.0)
    assert free.metrics["by_update"][0]["log_ratio_abs_max"] == 0.0
    assert scored.metrics["by_update"][0]["log_ratio_abs_max"] == 0.0


@pytest.mark.parametrize("case", ["grpo", "gspo", "gmpo", "kl_cov", "entropy", "kl in the loss", "correction"])
def test_chunks_of_the_head_cut_sequences_or_leave_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: dict[str, Tensor], case: str
) -> None:
    """Seven tokens at a time, of sequences of up to twelve: cut where the rule looks at tokens, else in two phases.

    The rule with a context meets its minibatch in one piece, all of which it has to see.
    """
    one_piece = {"update": {"micro_batch_tokens": 10_000}} if case == "kl_cov" else {}
    steps = Steps(tmp_path, monkeypatch, CASES[case], one_piece, weights=taught)
    whole = steps(ALL)
    with monkeypatch.context() as patch:
        patch.setattr(TorchKernel, "chunk_rows", lambda *_: 7)
        cut, scored = steps(ALL), steps(ALL | {"old_log_probs": "score"})
    assert_same_gradients(cut, whole, 1e-6)
    assert_same_metrics(cut, whole, 1e-6)
    assert_same_gradients(cut, scored, 0.0)
    assert_same_metrics(cut, scored, 0.0)


def test_the_gradient_of_a_bfloat16_head_is_summed_in_float32() -> None:
    """Beside autograd's own part: what the two come to is in no bfloat16 number, and nothing stays behind."""
    weight = nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))
    learner = Learner.of("policy", {"head": weight}, 1e-3, UpdateSettings(max_grad_norm=None))
    for added in (1.0, 2.0**-12):
        buffer = gradient_buffer(weight)
        assert buffer is not None
        assert buffer.dtype == torch.float32
        buffer += added
    weight.grad = torch.full_like(weight, 0.5)
    learner.clip_gradient()
    assert torch.equal(learner.masters["head"].grad, torch.full((2, 3), 1.5 + 2.0**-12))
    learner.drop_gradient()
    learner.clip_gradient()
    assert learner.masters["head"].grad is None
    assert gradient_buffer(nn.Parameter(torch.ones(2), requires_grad=False)) is None


def test_the_engines_log_probs_are_the_trainers_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: dict[str, Tensor]
) -> None:
    steps = Steps(tmp_path, monkeypatch, weights=taught)
    plain, found = steps(NONE), steps(NONE | {"old_log_probs": "engine"})
    assert_same_gradients(found, plain, 1e-5)
    assert found.sequences_read < plain.sequences_read


# --- what is not allowed, and said -----------------------------------------------------------------------------------

REASONS: dict[str, tuple[dict[str, Any], str | None]] = {
    "plain": ({}, None),
    "kl": ({"objective": {"kl": {"beta": 0.1}}}, "samples without signal are scored as well: the KL to the reference"),
    "entropy": ({"objective": {"entropy_bonus": 0.1}}, "scored as well: the entropy bonus acts on them"),
    "critic": ({"advantage": {"kind": "gae"}}, "scored as well: the critic learns from them"),
    "dro": ({"objective": {"rule": "dro"}}, "scored as well: the rule dro acts on tokens without an advantage"),
    "bapo": ({"objective": {"rule": "bapo"}}, "scored as well: the rule bapo looks at the whole minibatch"),
    "kl in the reward": (
        {"objective": {"kl": {"beta": 0.1, "where": "reward"}}},
        "old log-probs are scored before the updates: the KL in the reward needs them",
    ),
    "other precision": (
        {"rollout": {"dtype": "bfloat16"}, "update": {"shortcuts": {"old_log_probs": "engine"}}},
        "not taken from the engine: it samples with weights in bfloat16, and those that are trained are in float32",
    ),
    "truncated": (
        {"rollout": {"top_k": 5}, "update": {"shortcuts": {"old_log_probs": "engine"}}},
        "not taken from the engine: top-p or top-k sampling",
    ),
}


@pytest.mark.parametrize("why", REASONS)
def test_a_run_says_which_shortcuts_it_does_not_take(tmp_path: Path, why: str) -> None:
    change, sentence = REASONS[why]
    settings = tiny(tmp_path, "x", change)
    notes = Beginning(settings, code_of(settings)).notes
    assert any(sentence in note for note in notes) if sentence else notes == []


def test_rules_that_act_without_an_advantage_are_found() -> None:
    """By asking them. KL-Cov penalises tokens for their covariance, DRO and Kimi for their ratio."""
    found = set()
    for name, rule in RULES.items():
        subject = {"max_length": 8} if rule.reduction == "seq-mean-token-sum-norm" else {}
        if not PolicyLoss(name, **subject).is_silent_without_advantage():
            found.add(name)
    assert found == {"dro", "kimi", *(name for name, rule in RULES.items() if rule.context is not None)}


# --- a whole run -----------------------------------------------------------------------------------------------------

EQUAL = "def spread(completions, **others):\n    return [0.25] * len(completions)\n"


def test_a_run_without_any_signal_moves_as_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Momentum and weight decay move the weights also where no sample was read: to the same bits."""

    def rewards_agree_from(step: int) -> Callable[..., Collected]:
        def collected(policy: Any, engine: Any, task: Any, rewards: Any, settings: Any, now: int, at: int) -> Collected:
            found = collect(policy, engine, task, rewards, settings, now, at)
            if now >= step:
                found.batch.reward_B[:] = 0.5
            return found

        return collected

    monkeypatch.setattr(loop, "collect", rewards_agree_from(3))
    change = {"update": {"weight_decay": 0.1, "micro_batch_tokens": 1}}
    runs = [
        run_tiny(tmp_path, str(skip), change, {"update": {"shortcuts": {"skip_no_signal": skip}}})
        for skip in (False, True)
    ]
    plain, skipping = ((run / "model" / "model.safetensors").read_bytes() for run in runs)
    assert plain == skipping
    scored, spared = (TraceReader(run / "trace").tokens(4, 0) for run in runs)
    assert scored["logp_new"].null_count == 0
    for name in ("logp_old", "logp_new", "entropy"):
        assert spared[name].null_count == len(spared)
    assert spared["token"].to_pylist() != []
    for name in ("weight", "region", "effect"):
        assert sorted(spared[name].to_pylist()) == sorted(scored[name].to_pylist())


def test_shortcuts_read_what_they_say(tmp_path: Path) -> None:
    settings = tiny(tmp_path, "x", {"update": {"shortcuts": NONE}})
    assert Beginning(settings, code_of(settings)).policy.reading == Reading(packed=False, shared_prompts=False)
    settings = tiny(tmp_path, "x")
    assert Beginning(settings, code_of(settings)).policy.reading == Reading(packed=True, shared_prompts=True)
