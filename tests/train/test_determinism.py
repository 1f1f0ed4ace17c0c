"""The same seed gives the same bytes, another seed others; recording changes nothing of what is recorded.

Run: pytest tests/train/test_determinism.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import QUIET, differences, left_behind, metrics_of, run_tiny, weights_of

from dinghai.trace.reader import TraceReader
from dinghai.train.seeds import derive_seed

pytestmark = QUIET


@pytest.mark.parametrize(
    "change",
    [{}, {"advantage": {"kind": "gae"}}, {"model": {"lora": {"rank": 2}}}, {"rollout": {"dynamic_sampling": True}}],
    ids=str,
)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, change: dict) -> None:
    one, other = (run_tiny(tmp_path, name, change) for name in ("one", "other"))
    assert differences(left_behind(one), left_behind(other)) == []


def test_what_ran_before_in_the_process_has_no_say(tmp_path: Path) -> None:
    """A run sets the global generators from its seed, and its own do not depend on them."""
    one = run_tiny(tmp_path, "one")
    torch.manual_seed(12345)
    torch.rand(1000)
    run_tiny(tmp_path, "between", {"run": {"seed": 9, "steps": 1}})
    other = run_tiny(tmp_path, "other")
    assert differences(left_behind(one), left_behind(other)) == []


def test_another_seed_gives_other_prompts_weights_and_completions(tmp_path: Path) -> None:
    one, other = (run_tiny(tmp_path, f"seed-{seed}", {"run": {"seed": seed}}) for seed in (0, 1))
    assert metrics_of(one) != metrics_of(other)
    first, second = weights_of(one), weights_of(other)
    changed = [name for name in first if not torch.equal(first[name], second[name])]
    assert set(first) == set(second)
    assert len(changed) == len(first)


@pytest.mark.parametrize(
    "change",
    [
        {"trace": {"enabled": False}},
        {"trace": {"tokens": 60}},
        {"evaluation": {"every": 1}},
        {"checkpoint": {"every": 3, "keep": 1}},
    ],
    ids=str,
)
def test_what_is_recorded_does_not_change_what_is_learned(tmp_path: Path, change: dict) -> None:
    one, other = run_tiny(tmp_path, "one"), run_tiny(tmp_path, "other", change)
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    if change == {"trace": {"enabled": False}}:
        assert not (other / "trace").exists()
        assert metrics_of(one) == metrics_of(other)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
def test_how_many_completions_are_decoded_at_once_changes_no_token_of_the_first_step(
    tmp_path: Path, batch_size: int
) -> None:
    """Each completion has random numbers of its own; only the last bit of a log-prob may differ."""
    texts = []
    for name, size in (("one", 256), ("other", batch_size)):
        run = run_tiny(tmp_path, name, {"run": {"steps": 1}, "rollout": {"batch_size": size}})
        table = TraceReader(run / "trace").samples(1)
        texts.append(table["completion"].to_pylist())
    assert texts[0] == texts[1]


def test_seeds_differ_by_purpose_and_step() -> None:
    seeds = {derive_seed(s, p, t) for s in range(20) for p in ("rollout/0", "shuffle", "model") for t in range(20)}
    assert len(seeds) == 20 * 3 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "rollout/0", 2) == derive_seed(1, "rollout/0", 2)
