"""`dinghai epsilon`: what it prints, its JSON, and what it refuses.

Run: pytest tests/cli/test_epsilon_command.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lens"))  # runs whose ratios are put there
from epsilon_runs import spread_out, write_run

from dinghai.cli import main
from dinghai.commands import epsilon
from dinghai.lens.epsilon_advice import KnownNoise
from dinghai.lens.noise import Apart


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an ε that is far too small."""
    objective = {"rule": "grpo", "eps_low": 0.001, "eps_high": 0.2}
    return write_run(tmp_path_factory.mktemp("runs") / "[bold]tight", *spread_out(200, 10), objective=objective)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["epsilon", *arguments]) == status
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def test_the_advice_its_reasons_and_how_to_try_it(capsys: pytest.CaptureFixture[str], tight: Path) -> None:
    shown = said(capsys, str(tight))
    assert "[bold]tight   GRPO, ratio of tokens" in shown  # a name is no markup
    assert "3 of 3 recorded steps, update 2 of each batch, 6,000 tokens with a signal" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(line.startswith("eps_low 0.001 0.2 0.08 to 0.3 offset from 1") for line in lines)
    assert any(line.startswith("eps_high 0.2 keep 0.2 to 0.6 offset from 1") for line in lines)
    assert any("KL there" in line for line in lines)
    assert any(line.startswith("0.28 ") and line.endswith("DAPO") for line in lines)
    assert "Set eps_low 0.2: the rule's default" in shown
    assert "First-order" in shown
    assert lines[-1] == "--objective.parameters.eps_low 0.2"


def test_as_json(capsys: pytest.CaptureFixture[str], tight: Path) -> None:
    found: dict[str, Any] = json.loads(said(capsys, str(tight), "--json"))
    assert found["no_advice"] is None
    assert found["changes"] == {"eps_low": 0.2}
    low, high = found["bounds"]
    assert (low["advice"], high["advice"]) == ("change", "keep")
    assert low["range"] == [0.08, 0.3]
    assert {row["value"] for row in low["values"]} >= {0.001, 0.08, 0.2, 0.3}
    assert set(found["criteria"]["mistaken"]) == {"value", "why", "source"}
    assert found["noise"][0]["between"].startswith("engine against trainer")


def test_no_advice_is_an_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", *spread_out(10, 10), update={"epochs": 1, "minibatches": 1})
    shown = said(capsys, str(run))
    assert "can never act" in shown
    assert json.loads(said(capsys, str(run), "--json"))["no_advice"]["why"] == "one-update"


def test_measure_has_the_models_noise_decide(
    capsys: pytest.CaptureFixture[str], tight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = Apart.of(np.tile([-0.02, 0.02], 500), np.full(1000, -8.0, dtype=np.float32), np.arange(1000), "token")
    monkeypatch.setattr(epsilon, "_measured", lambda folder: [KnownNoise(loud, "padded, not packed, measured")])
    shown = said(capsys, str(tight), "--measure")
    assert "(padded, not packed, measured) differ by less than 0.02 nats" in shown
    assert "are stopped by mistake" in shown
    assert "padded" not in said(capsys, str(tight))


def test_measuring_needs_the_model(capsys: pytest.CaptureFixture[str], tight: Path) -> None:
    assert "holds no model/" in said(capsys, str(tight), "--measure", status=2)


def test_what_it_refuses(capsys: pytest.CaptureFixture[str], tight: Path, tmp_path: Path) -> None:
    assert "dinghai replay" in said(capsys, str(tight), "--eps_high", "0.3", status=2)
    assert "there is no run" in said(capsys, str(tmp_path / "nowhere"), status=2)
    config = json.loads((tight / "config.json").read_text("utf-8"))
    config["objective"]["rule"] = "mine"
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert "--rule-file" in said(capsys, str(tmp_path), status=2)
