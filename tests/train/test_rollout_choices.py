"""Dynamic sampling redraws, and not for ever; completions that were cut off are kept, masked or penalised as asked.

Run: pytest tests/train/test_rollout_choices.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import metrics_of, reward_file, run_tiny, tiny, weights_of

from dinghai.rollout.local import LocalEngine
from dinghai.trace.reader import TraceReader
from dinghai.train.collect import overlong_penalty

DYNAMIC: dict[str, Any] = {"run": {"steps": 3}, "rollout": {"dynamic_sampling": True, "max_redraws": 3}}

# Only prompts with an odd first number get rewards that differ.
HALF = """
def spread(completions, prompt_ids, **others):
    odd = [int(name.split("+")[0]) % 2 for name in prompt_ids]
    return [o * (sum(map(ord, text)) % 97) for o, text in zip(odd, completions)]
"""
EQUAL = "def spread(completions, **others):\n    return [0.25] * len(completions)\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of the engine completed."""
    calls: list[int] = []
    real = LocalEngine.generate

    def generate(self: LocalEngine, prompts: Any, *arguments: Any) -> Any:
        calls.append(len(prompts))
        return real(self, prompts, *arguments)

    monkeypatch.setattr(LocalEngine, "generate", generate)
    return calls


def test_dynamic_sampling_redraws_until_every_group_has_a_signal(tmp_path: Path, drawn: list[int]) -> None:
    change = {"rewards": [{"source": reward_file(tmp_path, HALF)}], "rollout": {"max_redraws": 30}}
    lines = metrics_of(run_tiny(tmp_path, "run", DYNAMIC, change))[1:]
    seen: list[str] = []
    for line in lines:
        table = TraceReader(tmp_path / "run" / "trace").samples(line["step"])
        assert set(table["group"].to_pylist()) == {0, 1, 2}
        assert all(int(name.split("+")[0]) % 2 for name in table["prompt_id"].to_pylist())
        assert line["groups/no_signal_fraction"] == 0.0
        assert line["tokens/signal"] > 0
        seen += dict.fromkeys(table["prompt_id"].to_pylist())
    assert len(set(seen)) == len(seen), "a prompt was used twice: the cursor does not move past what was redrawn"
    discarded = sum(line.get("groups/discarded", 0) for line in lines)
    assert discarded > 0
    assert sum(drawn) == 3 * 3 + discarded


def test_dynamic_sampling_gives_up_after_its_rounds(tmp_path: Path, drawn: list[int]) -> None:
    """No reward ever differs: the last groups are used as they are, and nothing is learned from them."""
    change = {"rewards": [{"source": reward_file(tmp_path, EQUAL)}], "checkpoint": {"every": 1}}
    run = run_tiny(tmp_path, "run", DYNAMIC, change)
    assert drawn == [3] * (1 + 3) * 3
    for line in metrics_of(run)[1:]:
        assert line["groups/discarded"] == 12
        assert line["groups/no_signal_fraction"] == 1.0
        assert line["tokens/signal"] == 0.0
        assert line["clip/region/no_signal_fraction"] == 1.0
        assert line["grad_norm_mean"] == 0.0
    first, last = (run / "checkpoints" / f"step-00000{step}" / "policy.safetensors" for step in (0, 3))
    assert first.read_bytes() == last.read_bytes()


def test_dynamic_sampling_goes_on_with_fewer(tmp_path: Path) -> None:
    change = {"rewards": [{"source": reward_file(tmp_path, HALF)}], "rollout": {"max_redraws": 1, "prompts": 6}}
    lines = metrics_of(run_tiny(tmp_path, "run", DYNAMIC, change))[1:]
    sizes = [len(TraceReader(tmp_path / "run" / "trace").samples(line["step"])) // 4 for line in lines]
    assert min(sizes) < 6
    assert all(0 < size <= 6 for size in sizes)
    assert all(line["groups/no_signal_fraction"] == 0.0 for line in lines)


def test_without_dynamic_sampling_nothing_is_redrawn(tmp_path: Path, drawn: list[int]) -> None:
    run = run_tiny(tmp_path, "run", {"rewards": [{"source": reward_file(tmp_path, EQUAL)}]})
    assert drawn == [3, 3, 3, 3]
    assert all("groups/discarded" not in line for line in metrics_of(run))


# --- completions that reach max_new_tokens ---------------------------------------------------------------------------

ENDS_BY_ITSELF: dict[str, Any] = {"cold_start": {"steps": 40, "lr": 0.02}, "rollout": {"prompts": 4}}


def test_masked_completions_are_left_out_of_the_loss(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", ENDS_BY_ITSELF, {"rollout": {"overlong": "mask"}})
    reader = TraceReader(run / "trace")
    both = False
    for line in metrics_of(run)[1:]:
        samples = reader.samples(line["step"]).to_pydict()
        finished = dict(zip(samples["sample"], samples["finished"], strict=True))
        both |= len(set(finished.values())) == 2
        tokens = (
            reader.tokens(line["step"], None, ["sample", "region", "weight"])
            .select(["sample", "region", "weight"])
            .to_pydict()
        )
        names = reader.names(line["step"]).regions
        kept = 0
        for sample, region, weight in zip(*tokens.values(), strict=True):
            assert (names[region] == "masked") == (not finished[sample])
            assert finished[sample] or weight == 0.0
            kept += finished[sample]
        assert line["tokens/loss"] == kept
        left_out = 1 - sum(finished.values()) / len(finished)
        assert math.isclose(line["completion/left_out_fraction"], left_out, abs_tol=1e-12)
        assert line["completion/left_out_fraction"] == line["completion/truncated_fraction"]
    assert both, "no step has finished and cut completions side by side"


@pytest.mark.parametrize("change", [{}, {"advantage": {"kind": "gae", "critic_warmup": 0}}], ids=["grpo", "ppo"])
def test_a_batch_of_masked_completions_alone_teaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    """No token counts: the loss is 0, not NaN, and the weights stay."""
    real = LocalEngine.generate

    def generate(*arguments: Any) -> Any:
        return [[replace(c, finished=False) for c in group] for group in real(*arguments)]

    monkeypatch.setattr(LocalEngine, "generate", generate)
    run = run_tiny(tmp_path, "run", {"rollout": {"overlong": "mask"}}, change)
    for line in metrics_of(run)[1:]:
        assert line["completion/left_out_fraction"] == 1.0
        assert line["tokens/loss"] == 0.0
        assert line["grad_norm_mean"] == 0.0
    first, last = (run / "checkpoints" / f"step-00000{step}" / "policy.safetensors" for step in (0, 4))
    assert first.read_bytes() == last.read_bytes()


def test_the_overlong_penalty_is_equation_13_of_dapo(tmp_path: Path) -> None:
    """L_max 16, L_cache 4: nothing up to 12 tokens, then a quarter more for each, -1 at 16."""
    rollout = tiny(tmp_path, "x", {"rollout": {"overlong": "penalty", "overlong_buffer": 4}}).rollout
    by_hand = {1: 0.0, 11: 0.0, 12: 0.0, 13: -0.25, 14: -0.5, 15: -0.75, 16: -1.0}
    assert {length: overlong_penalty(length, rollout) for length in by_hand} == by_hand
    kept = tiny(tmp_path, "y").rollout
    assert overlong_penalty(16, kept) == 0.0


def test_the_overlong_penalty_is_taken_off_the_reward_and_the_rewards_own_mean_stays(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", ENDS_BY_ITSELF, {"rollout": {"overlong": "penalty", "overlong_buffer": 8}})
    for line in metrics_of(run)[1:]:
        samples = TraceReader(run / "trace").samples(line["step"]).to_pydict()
        penalties = [-max(0, n - 8) / 8 for n in samples["tokens"]]
        own = samples["reward/spread"]
        assert any(penalties)
        for reward, part, penalty in zip(samples["reward"], own, penalties, strict=True):
            assert math.isclose(reward, part + penalty, abs_tol=1e-6)
        mean = math.fsum(own) / len(own)
        assert math.isclose(line["reward/mean"], mean, abs_tol=1e-6)
        assert math.isclose(line["reward/shaped/mean"], mean + math.fsum(penalties) / len(own), abs_tol=1e-6)


def test_kept_masked_and_penalised_lead_to_different_weights(tmp_path: Path) -> None:
    found = [
        weights_of(run_tiny(tmp_path, overlong, ENDS_BY_ITSELF, {"rollout": {"overlong": overlong}}))
        for overlong in ("keep", "mask", "penalty")
    ]
    name = "transformer.wte.weight"
    assert len({tuple(weights[name].flatten().tolist()) for weights in found}) == 3
