"""Metrics reach TensorBoard, wandb and trackio; a tool that is missing is said before anything is written.

Run: pytest tests/train/test_sinks.py
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import as_killed_after, metrics_of, resume_tiny, run_tiny

from dinghai.errors import InputError

TENSORBOARD: dict[str, Any] = {"run": {"steps": 2, "sinks": ["tensorboard"]}}


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Of the event files of a run: tag → step → the value that is shown."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", TENSORBOARD)
    shown = scalars(run)
    for line in metrics_of(run)[1:]:
        numbers = {k: float(v) for k, v in line.items() if k not in ("step", "by_update")}
        assert {k: shown[k][line["step"]] for k in numbers} == pytest.approx(numbers, rel=1e-6)
        for update in line["by_update"]:
            tag = f"update_{update['update']}/stopped_fraction"
            assert math.isclose(shown[tag][line["step"]], update["stopped_fraction"], rel_tol=1e-6)
    assert set(shown["reward/mean"]) == {1, 2}


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", TENSORBOARD)
    stopped = as_killed_after(run, 1, tmp_path / "stopped")
    resume_tiny(stopped)
    assert scalars(stopped)["reward/mean"].keys() == {2}  # as_killed_after has removed what was shown before
    resume_tiny(stopped)
    assert scalars(stopped)["reward/mean"].keys() == {2}


class Recorder(ModuleType):
    """Stands in for wandb or trackio, whose interface it checks: init, log with growing steps, finish."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.options: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def init(self, **options: Any) -> None:
        self.options = options

    def log(self, metrics: dict[str, Any], step: int) -> None:
        assert not self.finished
        assert not self.logged or step > self.logged[-1][0]
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_settings_metrics_and_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    run = run_tiny(tmp_path, "run", {"run": {"steps": 2, "sinks": [name]}})
    assert recorder.options["project"] == "dinghai"
    assert recorder.options["name"] == "run"
    assert recorder.options["config"] == json.loads((run / "config.json").read_text("utf-8"))
    assert recorder.options["resume"] == "allow"
    assert recorder.finished
    assert [step for step, _ in recorder.logged] == [1, 2]
    lines = metrics_of(run)[1:]
    for (_, metrics), line in zip(recorder.logged, lines, strict=True):
        assert metrics["reward/mean"] == line["reward/mean"]
        assert metrics["update_3/log_ratio_abs_max"] == line["by_update"][3]["log_ratio_abs_max"]
        assert all(isinstance(value, int | float) for value in metrics.values())


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_tool_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"{name} is not installed: pip install 'dinghai\\[{name}\\]'"):
        run_tiny(tmp_path, "run", {"run": {"sinks": [name]}})
    assert not (tmp_path / "run").exists()


def test_sinks_are_closed_when_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the last steps, those that would explain it, may never be shown."""
    recorder = Recorder("wandb")
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    fails = (
        "calls = []\ndef spread(completions, **others):\n    calls.append(1)\n    return [1 / (len(calls) < 3)] * 12\n"
    )
    (tmp_path / "fails.py").write_text(fails, "utf-8")
    with pytest.raises(InputError, match="division by zero"):
        run_tiny(
            tmp_path,
            "run",
            {"run": {"sinks": ["wandb"]}, "rewards": [{"source": f"{tmp_path / 'fails.py'}:spread"}]},
        )
    assert [step for step, _ in recorder.logged] == [1, 2]
    assert recorder.finished
