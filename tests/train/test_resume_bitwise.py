"""A run that was stopped after any step and resumed leaves the same bytes as one that was not.

Weights, optimiser, metrics, trace and final model are compared bit for bit; only the clock's numbers may differ.
Run: pytest tests/train/test_resume_bitwise.py
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_runs import (
    QUIET,
    STEPS,
    VARIANTS,
    as_killed_after,
    differences,
    left_behind,
    metrics_of,
    resume_tiny,
    run_tiny,
)

from dinghai.errors import RunFailed

pytestmark = QUIET


def test_resumed_from_every_step(tmp_path: Path) -> None:
    """12 steps, so that the run has seen warm-up, evaluations and several orders of its samples."""
    longer = {"run": {"steps": 12}, "update": {"warmup": 3, "schedule": "linear"}, "evaluation": {"every": 3}}
    undisturbed = run_tiny(tmp_path, "undisturbed", longer)
    expected = left_behind(undisturbed)
    assert len(expected["metrics"]) == 13
    for step in range(12):
        stopped = as_killed_after(undisturbed, step, tmp_path / f"stopped-{step}")
        resume_tiny(stopped)
        assert differences(left_behind(stopped), expected) == [], f"resumed after step {step}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_in_each_branch_of_the_loop(tmp_path: Path, variant: str) -> None:
    undisturbed = run_tiny(tmp_path, "undisturbed", VARIANTS[variant])
    expected = left_behind(undisturbed)
    for step in (0, STEPS // 2):
        stopped = as_killed_after(undisturbed, step, tmp_path / f"stopped-{step}")
        resume_tiny(stopped)
        assert differences(left_behind(stopped), expected) == [], f"resumed after step {step}"


def test_the_variants_are_what_they_say(tmp_path: Path) -> None:
    """Else the test above would prove less than it names."""
    last = {}
    for variant in ("grpo", "ppo with a critic", "kl in the loss", "dynamic sampling", "evaluation in between"):
        last[variant] = metrics_of(run_tiny(tmp_path, variant, VARIANTS[variant]))
    assert any(line["clip/stopped_fraction"] > 0 for line in last["grpo"][1:])
    assert "critic/explained_variance" in last["ppo with a critic"][-1]
    assert last["kl in the loss"][-1]["kl_ref_k3"] > 0
    assert sum(line.get("groups/discarded", 0) for line in last["dynamic sampling"]) > 0
    assert "held_out/accuracy" in last["evaluation in between"][2]


def test_a_finished_run_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed while the final model or the report is written: only those are left to do."""
    run = run_tiny(tmp_path)
    expected = left_behind(run)
    (run / "model" / "model.safetensors").write_bytes(b"half a fi")
    (run / "report.html").unlink()
    resume_tiny(run)
    assert differences(left_behind(run), expected) == []
    assert (run / "report.html").stat().st_size > 10_000


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    """Killed during the cold start: nothing but the configuration counts."""
    run = run_tiny(tmp_path)
    expected = left_behind(run)
    for name in ("checkpoints", "model"):
        shutil.rmtree(run / name)
    resume_tiny(run)
    assert differences(left_behind(run), expected) == []


@pytest.mark.parametrize("name", ["policy.safetensors", "policy-optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    undisturbed = run_tiny(tmp_path, "undisturbed")
    expected = left_behind(undisturbed)
    stopped = as_killed_after(undisturbed, 3, tmp_path / "stopped")
    damaged = stopped / "checkpoints" / "step-000003" / name
    contents = bytearray(damaged.read_bytes())
    contents[len(contents) // 2] ^= 1
    damaged.write_bytes(contents)
    capsys.readouterr()
    resume_tiny(stopped)
    out = capsys.readouterr().out
    assert f"passed over {damaged.parent}: {name} is not what was written" in out
    assert "resumed after step 2" in out
    assert differences(left_behind(stopped), expected) == []


def test_a_damaged_only_checkpoint_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", {"checkpoint": {"keep": 1}})
    (run / "checkpoints" / f"step-{STEPS:06d}" / "policy.safetensors").unlink()
    before = left_behind(run)
    with pytest.raises(RunFailed, match=r"policy\.safetensors is missing"):
        resume_tiny(run)
    assert differences(left_behind(run), before) == []


def test_a_run_whose_metrics_were_lost_still_learns_the_same(tmp_path: Path) -> None:
    """They are a record: without them the report is shorter, and no line of it is damaged."""
    undisturbed = run_tiny(tmp_path, "undisturbed")
    stopped = as_killed_after(undisturbed, 2, tmp_path / "stopped")
    kept = (stopped / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)[:2]
    (stopped / "metrics.jsonl").write_text("".join(kept), "utf-8")
    resume_tiny(stopped)
    assert differences(left_behind(stopped), left_behind(undisturbed)) == ["metrics"]
    assert [line["step"] for line in metrics_of(stopped)] == [0, 1, 3, 4]
