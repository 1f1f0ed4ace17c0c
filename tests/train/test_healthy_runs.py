"""No check of the doctor fires on a healthy run, neither whole nor after its first steps.

Two small runs that learn to add; `benchmarks/doctor.py` does the same with ten runs of the default settings, and with
those of papers. Run: pytest tests/train/test_healthy_runs.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinghai.config.settings import TrainSettings
from dinghai.lens.doctor.case import QUICK, Case
from dinghai.lens.doctor.diagnose import diagnose
from dinghai.lens.metrics_file import Metrics, load_metrics
from dinghai.train.run import train

STEPS = 8
SETTINGS = {
    "model": {"hidden_size": 64, "heads": 4, "layers": 1, "context": 64},
    "task": {"kind": "addition", "digits": 2, "held_out": 32},
    "cold_start": {"steps": 200, "batch_size": 48, "lr": 0.006},
    "rollout": {"prompts": 12, "group_size": 8, "max_new_tokens": 24},
    "update": {"lr": 2e-4, "warmup": 2},
    "evaluation": {"every": STEPS},
}


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_found_in_a_healthy_run(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"folder": str(tmp_path), "name": "run", "seed": seed, "steps": STEPS}
    train(TrainSettings.model_validate(SETTINGS | {"run": run}), set())
    assert "warning" not in capsys.readouterr().out
    folder = tmp_path / "run"
    metrics = load_metrics(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text())
    whole = Case(folder, config, metrics)
    assert diagnose(whole) == []
    assert whole.steps == list(range(1, STEPS + 1))  # it did look
    for until in (1, 2, 4, 8):
        first = Metrics([row for row in metrics.rows if row["step"] <= until])
        assert diagnose(Case(folder, config, first), early=True) == []
        assert diagnose(Case(folder, config, first, QUICK), early=True) == []
