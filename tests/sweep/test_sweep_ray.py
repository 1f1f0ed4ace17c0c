"""Trials on Ray Tune, for real, where Ray is installed; skipped elsewhere.

Run, in an environment with `ray[tune]`: pytest tests/sweep/test_sweep_ray.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_trials import sources, trial, write_rewards
from tiny_runs import differences, left_behind

from dinghai.config.load import settings_from_json
from dinghai.errors import InputError
from dinghai.sweep.ray_pool import RAY_ENVIRONMENT
from dinghai.sweep.trials import Outcome, run_trials
from dinghai.train.run import train

os.environ |= RAY_ENVIRONMENT  # which Ray reads when it is imported
ray = pytest.importorskip("ray")
pytest.importorskip("ray.tune")
pytestmark = [
    pytest.mark.timeout(240),  # Ray that waits for something waits for ever
    pytest.mark.filterwarnings("ignore:::ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Started once: that takes longer than the trials."""
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_on_ray_as_in_processes(tmp_path: Path) -> None:
    """A killed worker, a failing trial and a caller that stops the sweep: as with processes, to the same bytes."""
    rewards = write_rewards(tmp_path / "rewards")
    trials = [
        trial("errs", rewards, "raises"),
        trial("killed-once", rewards, "killed_once"),
        trial("plain", rewards),
    ]
    folder, code = tmp_path / "sweep", sources(trials)
    told: list[str] = []
    outcomes = run_trials(trials, folder, 2, tell=told.append, allowed_rewards=code, on="ray")
    assert [outcome.state for outcome in outcomes] == ["failed", "done", "done"], outcomes
    assert "a fault of the reward's" in str(outcomes[0].error)
    assert len(told) == 3
    assert "resumed after step 1" in (folder / "killed-once.log").read_text("utf-8")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [".lock"]

    one = trial("undisturbed", rewards, "killed_once")  # which kills once in all
    placed = one.settings | {"run": one.settings["run"] | {"name": one.name, "folder": str(tmp_path)}}
    train(settings_from_json(json.dumps(placed)), sources([one]))
    assert differences(left_behind(tmp_path / one.name), left_behind(folder / "killed-once")) == []

    (rewards.parent / "mended").touch()

    def stop(outcome: Outcome) -> None:
        raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        run_trials(trials, folder, 2, tell=told.append, allowed_rewards=code, ended=stop, on="ray")
    assert told[3] == "2 of 3 trials are done already"
    # Its run was complete when the caller stopped.
    outcomes = run_trials(trials, folder, 2, tell=told.append, allowed_rewards=code, on="ray")
    assert [outcome.state for outcome in outcomes] == ["done"] * 3
