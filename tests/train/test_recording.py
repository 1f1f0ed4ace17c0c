"""The trace holds what the loss decided, for every rule and correction; and whether it is written changes nothing.

Run: pytest tests/train/test_recording.py
"""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import QUIET, as_killed_after, differences, left_behind, resume_tiny, run_tiny

from dinghai import files
from dinghai.errors import RunFailed
from dinghai.lens.regions import REGIONS
from dinghai.lens.rule_facts import load_rule_facts
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import CORRECTIONS, RULES, PolicyLossOutput
from dinghai.trace import TraceReader, TraceWriter
from dinghai.train import record
from dinghai.train import run as run_module
from dinghai.train.checkpoint import load_latest_checkpoint

pytestmark = QUIET

# One step of three updates with large steps between them, nothing before it; micro-batches of some sequences.
SHORT = {
    "run": {"steps": 1},
    "cold_start": {"steps": 0},
    "update": {
        "epochs": 3,
        "minibatches": 1,
        "lr": 0.003,
        "micro_batch_tokens": 64,
        "shortcuts": {"skip_no_signal": False},  # what is never scored is never decided on: see test_shortcuts.py
    },
    "evaluation": {"every": 100},
}
MISMATCH = {"rollout": {"top_p": 0.7}}  # the engine's probabilities are the trainer's over 0.7 and a little more
LOW = 0.7015
SEQUENCE_RATIOS = [
    {"objective": {"rule": "grpo", "ratio": "sequence", "parameters": {"eps_low": 3e-4, "eps_high": 4e-4}}},
    {"objective": {"rule": "grpo", "ratio": "sequence-token"}},
    {"objective": {"rule": "importance_sampling", "ratio": "sequence-product"}},
    {"objective": {"rule": "dro", "ratio": "token"}},
]
CORRECTED = [{"objective": {"corrections": {name: {}}}, **MISMATCH} for name in CORRECTIONS]
OTHERS = [
    {"objective": {"rule": "gspo", "corrections": {"tis": {}, "geometric-rejection": {"low": 0.5, "high": 1.5}}}},
    {"objective": {"kl": {"beta": 0.05}}},
    {"objective": {"kl": {"beta": 0.05, "where": "reward"}}},
    {"objective": {"kl": {"beta": 0.1, "estimator": "k2"}, "corrections": {"mis": {"low": LOW}}}, **MISMATCH},
    {"rollout": {"overlong": "mask"}},
]


class Decided:
    """What the loss gave out in a run of one step, by update: each field as one array, in the order of the trace."""

    def __init__(self) -> None:
        self.updates: dict[int, list[tuple[PolicyLossOutput, torch.Tensor, torch.Tensor]]] = {}

    def field(self, update: int, name: str) -> np.ndarray | None:
        columns = [getattr(out.decision, name) for out, _, _ in self.updates[update]]
        return None if columns[0] is None else torch.cat(columns).numpy()

    def factor(self, update: int) -> np.ndarray:
        return torch.cat([out.factor for out, _, _ in self.updates[update]]).numpy()

    def own_log_ratio(self, update: int) -> np.ndarray:
        return torch.cat([new - old for _, new, old in self.updates[update]]).numpy()


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Decided:
    """Fills itself in the next run."""
    seen = Decided()
    original = record.StepRecord.policy_tokens

    def listen(self: Any, chosen: Any, new: Any, old: Any, entropy: Any, out: PolicyLossOutput) -> None:
        seen.updates.setdefault(self.updates[-1].index, []).append((out, new.detach(), old))
        original(self, chosen, new, old, entropy, out)

    monkeypatch.setattr(record.StepRecord, "policy_tokens", listen)
    return seen


def close(found: np.ndarray, expected: np.ndarray, bits: int) -> bool:
    """Equal to `bits` significant bits, and exactly where 0."""
    return bool(
        np.array_equal(found == 0, expected == 0)
        and np.allclose(found, expected, rtol=2.0 ** -(bits - 1), atol=0, equal_nan=True)
    )


def assert_trace_is_what_was_decided(run: Path, decided: Decided) -> list[Tokens]:
    reader = TraceReader(run / "trace")
    assert reader.updates(1) == list(decided.updates) == [0, 1, 2]
    updates = [read_tokens(reader, 1, update) for update in decided.updates]
    for update, tokens in enumerate(updates):
        counts = decided.field(update, "mask")
        assert counts is not None
        assert counts.sum() > 10

        def expected(name: str, update: int = update, counts: np.ndarray = counts) -> np.ndarray:
            values = decided.field(update, name)
            assert values is not None
            return values[counts]

        found = tokens.rows(counts)
        assert np.array_equal(found.log_ratio, expected("log_ratio"))
        assert np.array_equal(found.factor, decided.factor(update)[counts].astype(np.float32))
        assert close(found.ratio, expected("ratio"), 22)
        assert close(found.weight, expected("weight"), 16)
        bits = 22 if tokens.correction is None else 15
        unclipped, weight = expected("weight_unclipped"), expected("weight")
        assert close(found.weight_unclipped, unclipped, bits)
        removed = np.clip(np.abs(unclipped) - np.clip(weight * np.sign(unclipped), 0, None), 0, None)
        norm = decided.factor(update)[counts] * -np.expm1(found.logp_new.astype(float))
        assert np.allclose(found.removed, removed * norm, rtol=1e-4, atol=1e-4 * np.abs(unclipped * norm).max())
        for name, column, digits in (("correction", found.correction, 16), ("kl_weight", found.kl_weight, 8)):
            there = decided.field(update, name) is not None
            assert (column is not None) == there
            assert not there or close(column, expected(name), digits)
    return updates


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_is_recorded_as_it_decided(tmp_path: Path, rule: str, decided: Decided) -> None:
    run = run_tiny(tmp_path, "run", SHORT, {"objective": {"rule": rule}})
    updates = assert_trace_is_what_was_decided(run, decided)
    assert np.abs(updates[2].log_ratio).max() > 1e-4
    raw = TraceReader(run / "trace").tokens(1, 2, ["log_ratio"])["log_ratio"]
    own_ratio = RULES[rule].ratio_levels[0] == "token"
    assert raw.null_count == (len(raw) if own_ratio else 0)
    if own_ratio:  # what the null stands for, to the bit
        counts = decided.field(2, "mask")
        assert np.array_equal(decided.own_log_ratio(2)[counts], decided.field(2, "log_ratio")[counts])
    facts = load_rule_facts(run)
    assert facts is not None
    assert (facts["name"], facts["ratio"]) == (rule, RULES[rule].ratio_levels[0])


@pytest.mark.parametrize("change", [*SEQUENCE_RATIOS, *CORRECTED, *OTHERS], ids=str)
def test_ratios_corrections_and_penalties_are_recorded(
    tmp_path: Path, change: dict[str, Any], decided: Decided
) -> None:
    run = run_tiny(tmp_path, "run", SHORT, change)
    tokens = assert_trace_is_what_was_decided(run, decided)[2]
    corrections = change.get("objective", {}).get("corrections", {})
    assert (tokens.correction is not None) == bool(corrections)
    if corrections:
        dropped = tokens.region == REGIONS.index("dropped")
        assert np.array_equal(dropped, (tokens.correction == 0) & tokens.signal)
        assert dropped.any() or corrections != {"mis": {"low": LOW}}
    if "overlong" in change.get("rollout", {}):
        masked = tokens.region == REGIONS.index("masked")
        assert 0 < masked.sum() < len(tokens)
        assert not tokens.factor[masked].any()


def test_the_rules_facts_are_written_once(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run")
    facts = json.loads((run / "rule.json").read_text("utf-8"))
    copy = as_killed_after(run, 2, tmp_path / "copy")
    (copy / "rule.json").write_text('{"of": "the program that began the run"}')
    resume_tiny(copy)
    assert (copy / "rule.json").read_text() == '{"of": "the program that began the run"}'
    assert facts["parameters"] == json.loads((run / "config.json").read_text("utf-8"))["objective"]["parameters"]


def test_a_checkpoint_waits_for_the_trace_of_the_steps_that_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run keeps that trace: had it been lost with the process, nobody would write it again."""
    found: dict[int, list[int]] = {}
    finish_step, save_checkpoint = TraceWriter.finish_step, run_module.save_checkpoint

    def slowly(self: TraceWriter) -> None:
        time.sleep(0.2)
        finish_step(self)

    def save(folder: Path, step: int, *arguments: Any) -> Path:
        found[step] = TraceReader(folder / "trace").steps()
        return save_checkpoint(folder, step, *arguments)

    monkeypatch.setattr(TraceWriter, "finish_step", slowly)
    monkeypatch.setattr(run_module, "save_checkpoint", save)
    run_tiny(tmp_path, "run", {"checkpoint": {"every": 2}})
    assert found == {0: [], 2: [1, 2], 4: [1, 2, 3, 4]}


def test_a_full_disk_under_the_trace_stops_the_run_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = files.write_all

    def full(file: Any, data: bytes) -> None:
        if "step-000002/update-001" in file.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        with pytest.raises(RunFailed, match=r"update-001.*free some space on that disk; then resume the run"):
            run_tiny(tmp_path)
    run = tmp_path / "run"
    assert load_latest_checkpoint(run, pytest.fail).step == 1
    assert TraceReader(run / "trace").steps() == [1]
    resume_tiny(run)
    assert differences(left_behind(run), left_behind(run_tiny(tmp_path, "undisturbed"))) == []


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"objective": {"rule": "gspo"}},
        {"objective": {"corrections": {"tis": {"cap": 1.01}}}, **MISMATCH},
        {"objective": {"kl": {"beta": 0.05}}},
    ],
    ids=str,
)
def test_recording_changes_no_bit_of_what_is_learned(tmp_path: Path, change: dict[str, Any]) -> None:
    """Parameters, optimiser and metrics, at every checkpoint; and no number is drawn for it."""
    recorded = left_behind(run_tiny(tmp_path, "recorded", change))
    states = [torch.get_rng_state()]
    not_recorded = left_behind(run_tiny(tmp_path, "not", change, {"trace": {"enabled": False}}))
    states.append(torch.get_rng_state())
    assert any(name.startswith("trace/") for name in recorded)
    without = {name: value for name, value in recorded.items() if not name.startswith("trace/")}
    assert differences(without, not_recorded) == []
    assert any("optimizer" in name or "policy" in name for name in without)
    assert torch.equal(*states)
