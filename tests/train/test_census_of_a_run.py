"""The census of what a run recorded gives the figures that the run itself wrote into metrics.jsonl.

Run: pytest tests/train/test_census_of_a_run.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import STEPS, metrics_of, run_tiny

from dinghai.lens.bins import Bins, bins_for
from dinghai.lens.census import census
from dinghai.lens.regions import REGIONS
from dinghai.lens.rule_facts import load_rule_facts
from dinghai.trace import TraceReader

RUNS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "micro-batches": {"update": {"micro_batch_tokens": 64}},
    "a ratio of sequences": {"objective": {"rule": "gspo"}},
    "a soft rule": {"objective": {"rule": "sapo"}},
    "tokens dropped, and a penalty": {  # the engine draws from 0.7 of the probability, so k is 0.7 and a little more
        "objective": {"corrections": {"mis": {"low": 0.7015}}, "kl": {"beta": 0.05}},
        "rollout": {"top_p": 0.7},
    },
    "tokens left out of the loss": {"rollout": {"overlong": "mask", "group_size": 8}},
    "a critic": {"advantage": {"kind": "gae"}},
    "one constant for all lengths": {"objective": {"reduction": "seq-mean-token-sum-norm"}},
}


def assert_census_agrees(found: dict[str, Any], metrics: dict[str, Any], prefix: str) -> None:
    if found["tokens"] == 0:  # every completion of the minibatch was left out
        assert f"{prefix}stopped_fraction" not in metrics
        return
    signal, gradient = found["signal"], found["gradient"]
    assert found["not_finite"] == 0
    assert found["stopped"] == round(metrics[f"{prefix}stopped_fraction"] * signal)
    assert found["outside"] == round(metrics[f"{prefix}band_fraction"] * signal)
    removed = dict.fromkeys(REGIONS, 0.0)
    tokens = dict.fromkeys(REGIONS, 0)
    for _, _, region, count, _, lost in found["map"]["cells"]:
        removed[REGIONS[region]] += lost
        tokens[REGIONS[region]] += count
    tokens["no_signal"] += found["unscored"]  # without a ratio they have no cell
    for name in REGIONS:
        if name == "masked":
            continue
        assert tokens[name] == round(metrics[f"{prefix}region/{name}_fraction"] * found["tokens"]), name
        share = removed[name] / gradient if gradient else 0.0
        expected = metrics[f"{prefix}gradient_removed/{name}"]
        assert share == pytest.approx(expected, rel=1e-3, abs=2e-5), name
    total = math.fsum(row["removed"] for row in found["by_position"]["rows"])
    assert total == pytest.approx(metrics[f"{prefix}gradient_removed/total"] * gradient, rel=1e-3, abs=2e-5 * gradient)


@pytest.mark.parametrize("name", RUNS)
def test_the_census_agrees_with_the_metrics(tmp_path: Path, name: str) -> None:
    run = run_tiny(tmp_path, "run", RUNS[name])
    reader = TraceReader(run / "trace")
    bins = bins_for(reader, load_rule_facts(run))
    assert isinstance(bins, Bins)
    rows = {row["step"]: row for row in metrics_of(run)}
    for step in range(1, STEPS + 1):
        found = census(reader, [step], bins=bins)
        assert (found["tokens"], found["signal"]) == (rows[step]["tokens/loss"], rows[step]["tokens/signal"])
        assert_census_agrees(found, rows[step], "clip/")
        for update, row in enumerate(rows[step]["by_update"]):
            assert_census_agrees(census(reader, [step], update, bins), row, "")
    whole = census(reader, bins=bins)
    assert whole["signal"] == sum(rows[step]["tokens/signal"] for step in range(1, STEPS + 1))
    assert (whole["masked"] > 0) == (name == "tokens left out of the loss")
    assert any(REGIONS[cell[2]] == "dropped" for cell in whole["map"]["cells"]) == (name.startswith("tokens dropped"))
    noise = whole["ratio"]["noise"]["sampler_q95"]
    if name.startswith("tokens dropped"):
        assert noise == pytest.approx(-math.log(0.7), rel=0.07)
    else:  # the built-in engine computes what the trainer computes
        assert noise < 1e-4
