"""The noise floor, against differences that are put into a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinghai.lens.noise import Noise, noise_floor
from dinghai.trace import Samples, TraceWriter

CONFIG: dict[str, Any] = {"rollout": {"top_p": 1.0, "top_k": 0}, "objective": {"ratio": "token"}}


def make_trace(run: Path, apart: list[list[float]]) -> None:
    """One step; `apart` has log π_old - log π_sampler of each token of each completion."""
    names = dict(enumerate(["INSIDE", "NO_SIGNAL"]))
    writer = TraceWriter(run / "trace", 1000, 0, 0, regions=names, effects={0: "KEPT"})
    lengths = [len(one) for one in apart]
    count = len(apart)
    texts = ["x"] * count
    samples = Samples(
        sample=list(range(count)), group=[0] * count, prompt_id=texts, prompt=texts, completion=texts, tokens=lengths,
        finished=[True] * count, reward=[0.0] * count, reward_parts={},
    )  # fmt: skip
    size = sum(lengths)
    zeros = np.zeros(size, dtype=np.float32)
    old = np.full(size, -2.0, dtype=np.float32)
    writer.begin_step(3, samples)
    columns = {
        "position": np.concatenate([np.arange(n) for n in lengths]), "token": zeros.astype(int),
        "logp_sampler": (old - np.concatenate(apart)).astype(np.float32), "logp_old": old, "logp_new": old,
        "advantage": zeros + 1, "weight": zeros + 1, "region": zeros.astype(int), "effect": zeros.astype(int),
        "entropy": zeros,
    }  # fmt: skip
    writer.add_update(0, columns, np.repeat(np.arange(count), lengths))
    writer.finish_step()


APART = [[0.0, 0.25, -0.5], [1.0]]  # exact in the trace's rounding


@pytest.mark.parametrize(
    ("ratio", "values", "of"),
    [
        ("token", [0.0, 0.25, 0.5, 1.0], "tokens"),
        ("sequence", [0.25 / 3, 1.0], "sequences"),
        ("sequence-token", [0.25 / 3, 1.0], "sequences"),
        ("sequence-product", [0.25, 1.0], "sequences"),
    ],
)
def test_noise_is_that_of_the_ratio_that_the_rule_sees(
    tmp_path: Path, ratio: str, values: list[float], of: str
) -> None:
    make_trace(tmp_path, APART)
    noise = noise_floor(tmp_path, CONFIG | {"objective": {"ratio": ratio}}, 3)
    assert noise == Noise(pytest.approx(np.median(values)), pytest.approx(np.quantile(values, 0.95)), of)  # type: ignore[arg-type]


def test_tokens_whose_probability_is_not_known_are_left_out(tmp_path: Path) -> None:
    make_trace(tmp_path, [[np.nan, 0.5], [np.inf]])
    assert noise_floor(tmp_path, CONFIG, 3) == Noise(0.5, 0.5, "tokens")
    make_trace(tmp_path / "other", [[np.nan]])
    assert noise_floor(tmp_path / "other", CONFIG, 3) is None


@pytest.mark.parametrize("rollout", [{"top_p": 0.9, "top_k": 0}, {"top_p": 1.0, "top_k": 20}, {}, None])
def test_a_sampler_with_a_distribution_of_its_own_tells_nothing(tmp_path: Path, rollout: dict[str, Any] | None) -> None:
    make_trace(tmp_path, APART)
    assert noise_floor(tmp_path, CONFIG | {"rollout": rollout}, 3) is None


def test_a_sampler_whose_numbers_are_taken_for_the_trainers_own_tells_nothing(tmp_path: Path) -> None:
    make_trace(tmp_path, APART)
    for old, known in (("engine", False), ("first-update", True)):
        config = CONFIG | {"update": {"shortcuts": {"old_log_probs": old}}}
        assert (noise_floor(tmp_path, config, 3) is not None) == known


def test_a_step_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    assert noise_floor(tmp_path, CONFIG, 3) is None
    make_trace(tmp_path, APART)
    assert noise_floor(tmp_path, CONFIG, 4) is None
    (file,) = (tmp_path / "trace" / "step-000003").glob("update-*.parquet")
    file.write_bytes(file.read_bytes()[:-3])
    (tmp_path / "trace" / "step-000003" / "complete.json").touch()
    assert noise_floor(tmp_path, CONFIG, 3) is None
