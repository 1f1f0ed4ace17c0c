"""Proves of one_update, tokens_and_gradient, gspo_fraction, dual_clip, critic and claims that their settings are valid,
and that what they measure is what a run recorded.

Run: pytest tests/studies/test_study_measures_b.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import claims
import critic
import dual_clip
import gspo_fraction
import one_update
import pytest
import tokens_and_gradient
from common.base import merged
from common.measures import mean_over_signal, mean_share_of_gradient, rows_of
from common.study import Study

from dinghai.config.settings import TrainSettings
from dinghai.lens.metrics_file import read_metrics
from dinghai.sweep.trials import Trial, validated
from dinghai.train.run import train

ALL: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (claims, critic, dual_clip, gspo_fraction, one_update, tokens_and_gradient)
}

TINY = {
    "model": {"hidden_size": 16, "heads": 2, "layers": 1, "context": 64},
    "task": {"kind": "addition", "digits": 2, "held_out": 8},
    "cold_start": {"steps": 3, "batch_size": 8},
    "rollout": {"prompts": 4, "group_size": 4, "max_new_tokens": 12},
    "update": {"epochs": 2, "minibatches": 2, "lr": 0.02, "schedule": "constant", "warmup": 0},
    "evaluation": {"every": 100},
}
REWARD = """
def spread(completions, **others):
    return [sum(map(ord, text)) % 7 / 6 for text in completions]
"""


@pytest.mark.parametrize("name", ALL)
def test_settings_are_valid(name: str, tmp_path: Path) -> None:
    """Every arm's settings are ones that training accepts, and no two arms have the same."""
    study = ALL[name]
    trials: list[Trial] = [study.trial(arm, 0, tmp_path, None) for arm in study.arms]
    assert len(validated(trials, tmp_path / "runs")) == len(study.arms)
    assert len({json.dumps(trial.settings, sort_keys=True) for trial in trials}) == len(trials)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps in which the clip stops tokens."""
    folder = tmp_path_factory.mktemp("studies")
    return train_tiny(folder, "run", {"run": {"steps": 2}, "objective": {"rule": "ppo"}})


def train_tiny(folder: Path, name: str, changes: Mapping[str, object]) -> Path:
    reward = folder / "reward.py"
    reward.write_text(REWARD, "utf-8")
    source = f"{reward}:spread"
    placed = {"run": {"name": name, "folder": str(folder)}, "rewards": [{"source": source}]}
    train(TrainSettings(**merged(TINY, placed, changes)), {source})
    return folder / name


def test_measures_of_the_trace_are_those_of_the_metrics(tiny_run: Path) -> None:
    """Sums over the tokens of the trace give the fraction and the share that training wrote to metrics.jsonl."""
    found, rows = tokens_and_gradient.measure(tiny_run), rows_of(tiny_run)
    fraction = mean_over_signal(rows, "clip/stopped_fraction")
    assert fraction is not None
    assert fraction > 0
    assert found["fraction/stopped"] == pytest.approx(fraction, rel=1e-6)
    share = mean_share_of_gradient(rows, "clip/gradient_removed/total")
    assert found["share/stopped"] == pytest.approx(share, rel=1e-4)
    factors = found["log_surprise/stopped"] + found["log_weight/stopped"]
    assert factors == pytest.approx(found["log_share_to_fraction/stopped"], abs=1e-6)
    assert found["fraction/stopped/0"] == 0.0
    first = [row["by_update"][0]["stopped_fraction"] for row in read_metrics(tiny_run / "metrics.jsonl")[1:]]
    assert claims.measure(tiny_run)["stopped_first"] == max(first) == 0.0


def test_largest_weight_is_that_of_bad_tokens(tiny_run: Path) -> None:
    """Without a dual clip the largest |w|/|A| of a bad token is its ratio, where the ratio is above the band."""
    found = dual_clip.measure(tiny_run)
    assert found["ratio_largest"] > 1.2
    assert found["weight_largest"] == pytest.approx(found["ratio_largest"], rel=1e-4)


def test_distance_is_measured_from_reinforce(tmp_path: Path, tiny_run: Path) -> None:
    """0 to the last bit for the reference itself and for PPO with one update a batch; not with four."""
    start = str(tiny_run / "model")
    for updates in (1, 4):
        for rule in ("reinforce", "ppo"):
            changes = {"objective": {"rule": rule, "reduction": "token-mean"}, "update": one_update.UPDATES[updates]}
            begun = {
                "run": {"steps": 1},
                "model": {"path": start},
                "cold_start": {"steps": 0},
                "trace": {"enabled": False},
            }
            train_tiny(tmp_path, f"{one_update.arm_of(rule, updates)}-seed0", merged(changes, begun))
    found = {
        (rule, updates): one_update.measure(tmp_path / f"{one_update.arm_of(rule, updates)}-seed0")
        for rule in ("reinforce", "ppo")
        for updates in (1, 4)
    }
    assert found["ppo", 1]["distance"] == found["reinforce", 1]["distance"] == 0.0
    assert found["ppo", 1]["fingerprint"] == found["reinforce", 1]["fingerprint"]
    assert found["ppo", 4]["distance"] > one_update.ROUNDING
    assert found["ppo", 4]["fingerprint"] != found["reinforce", 4]["fingerprint"]
