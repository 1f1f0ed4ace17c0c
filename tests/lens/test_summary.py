"""A run's sums, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dinghai.errors import InputError
from dinghai.files import json_line
from dinghai.lens import summarize

ROWS: list[dict[str, Any]] = [
    {"step": 0, "held_out/accuracy": 0.41},
    {
        "step": 1,
        "reward/mean": 0.25,
        "tokens/signal": 100,
        "clip/stopped_fraction": 0.10,
        "clip/band_fraction": 0.20,
        "clip/gradient_removed/total": 0.08,
        "clip/gradient_removed/overshoot": 0.06,
        "clip/gradient_removed/escaped": 0.02,
        "groups/no_signal_fraction": 0.25,
    },
    {
        "step": 2,
        "reward/mean": 0.75,
        "tokens/signal": 300,
        "clip/stopped_fraction": 0.02,
        "clip/band_fraction": 0.04,
        "clip/gradient_removed/total": 0.02,
        "clip/gradient_removed/overshoot": 0.01,
        "clip/gradient_removed/escaped": 0.01,
        "groups/no_signal_fraction": 0.75,
        "held_out/accuracy": 0.87,
    },
]
CONFIG = {
    "run": {"steps": 2},
    "update": {"epochs": 2, "minibatches": 2},
    "objective": {"rule": "grpo", "eps_low": 0.2, "eps_high": 0.28},
}


def make_run(folder: Path, rows: list[dict[str, Any]], config: dict[str, Any] | None = CONFIG) -> Path:
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(map(json_line, rows)))
    return folder


def test_shares_of_gradient_weigh_each_step_by_its_gradient(tmp_path: Path) -> None:
    rows = [row | {"clip/gradient_unclipped": 30.0 if row["step"] == 1 else 10.0} for row in ROWS]
    summary = summarize(make_run(tmp_path, rows))
    assert summary.gradient_removed == pytest.approx((0.08 * 30 + 0.02 * 10) / 40)
    assert summary.removed_by_region["overshoot"] == pytest.approx((0.06 * 30 + 0.01 * 10) / 40)


def test_shares_weigh_each_step_by_its_tokens(tmp_path: Path) -> None:
    summary = summarize(make_run(tmp_path, ROWS))
    # (0.10 * 100 + 0.02 * 300) / 400 = 0.04, where the mean of the means would be 0.06
    assert summary.stopped_fraction == pytest.approx(0.04)
    assert summary.band_fraction == pytest.approx((20 + 12) / 400)
    assert summary.gradient_removed == pytest.approx((8 + 6) / 400)
    assert summary.removed_by_region["overshoot"] == pytest.approx((6 + 3) / 400)
    assert summary.removed_by_region["escaped"] == pytest.approx((2 + 3) / 400)
    assert summary.removed_most == "overshoot"
    assert summary.no_signal_groups == pytest.approx(0.5)
    assert (summary.held_out_first, summary.held_out_last, summary.held_out_last_step) == (0.41, 0.87, 2)
    assert (summary.reward_first, summary.reward_last) == (0.25, 0.75)
    assert (summary.updates_per_batch, summary.steps, summary.parameters) == (4, 2, {"eps_low": 0.2, "eps_high": 0.28})


def test_updates_are_counted_where_the_settings_are_missing(tmp_path: Path) -> None:
    rows = [{"step": 1, "by_update": [{"update": 0}]}, {"step": 2, "by_update": [{"update": 0}, {"update": 1}]}]
    summary = summarize(make_run(tmp_path, rows, config=None))
    assert summary.updates_per_batch == 2
    assert "config.json is missing" in summary.notes[0]


def test_steps_without_signal_weigh_nothing(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "tokens/signal": 0, "clip/stopped_fraction": 0.0},
        {"step": 2, "tokens/signal": 10, "clip/stopped_fraction": 0.3},
    ]
    assert summarize(make_run(tmp_path, rows)).stopped_fraction == pytest.approx(0.3)


def test_numbers_that_are_not_finite_are_left_out_of_means(tmp_path: Path) -> None:
    rows = [*ROWS, {"step": 3, "tokens/signal": 5, "grad_norm": float("nan"), "clip/stopped_fraction": float("nan")}]
    summary = summarize(make_run(tmp_path, rows))
    assert summary.stopped_fraction == pytest.approx(0.04)


def test_weights_stand_in_where_gradient_shares_are_missing(tmp_path: Path) -> None:
    rows = [{"step": 1, "tokens/signal": 5, "clip/weight_removed/total": 0.1, "clip/weight_removed/escaped": 0.1}]
    summary = summarize(make_run(tmp_path, rows))
    assert summary.gradient_removed == pytest.approx(0.1)
    assert summary.removed_most == "escaped"


@pytest.mark.parametrize("config", ["{", "[]", "null", '{"update": 3, "objective": [], "run": null}', "[" * 9_999])
def test_damaged_settings_do_not_stop_the_summary(tmp_path: Path, config: str) -> None:
    make_run(tmp_path, ROWS)
    (tmp_path / "config.json").write_text(config)
    assert summarize(tmp_path).held_out_last == 0.87


def test_a_run_without_metrics_and_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        summarize(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    summary = summarize(tmp_path)
    assert "metrics.jsonl is missing" in summary.notes[0]


def test_effects_are_shares_of_the_tokens_with_a_signal(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "tokens/loss": 400, "tokens/signal": 100, "clip/effect/attenuated_fraction": 0.05},
        {"step": 2, "tokens/loss": 100, "tokens/signal": 100, "clip/effect/attenuated_fraction": 0.20},
    ]
    # 20 of 100 and 20 of 100 tokens
    assert summarize(make_run(tmp_path, rows)).effects == {"attenuated": pytest.approx(0.2)}


def test_updates_are_added_up_by_their_index(tmp_path: Path) -> None:
    def entry(update: int, tokens: int, stopped: float) -> dict[str, Any]:
        return {"update": update, "signal_tokens": tokens, "stopped_fraction": stopped, "gradient_removed/total": 0.5}

    rows = [
        {"step": 1, "by_update": [entry(0, 10, 0.0), entry(1, 10, 0.4)]},
        {"step": 2, "by_update": [entry(0, 10, 0.0), entry(1, 30, 0.0)]},
    ]
    first, second = summarize(make_run(tmp_path, rows)).updates
    assert (first.index, first.stopped_fraction) == (0, 0.0)
    assert (second.index, second.stopped_fraction, second.gradient_removed) == (1, pytest.approx(0.1), 0.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1] * 14, None),  # two steps at each end tell nothing of their scatter
        ([0.1, 0.2, 0.3] * 2 + [0.5] * 3 + [0.8, 0.9, 1.0] * 2, (0.2, 0.9, 3, True)),
        ([0.1, 0.5, 0.9] * 5, (0.5, 0.5, 3, False)),
        ([0.2, 0.5, 0.8] * 4 + [0.3, 0.6, 0.9], (0.5, 0.6, 3, False)),
    ],
)
def test_a_change_of_reward_is_told_from_noise(
    tmp_path: Path, values: list[float], expected: tuple[float, float, int, bool] | None
) -> None:
    rows = [{"step": step, "reward/mean": value} for step, value in enumerate(values, start=1)]
    change = summarize(make_run(tmp_path, rows)).reward_change
    if expected is None:
        assert change is None
    else:
        assert change is not None
        assert (change.first, change.last) == pytest.approx(expected[:2])
        assert (change.steps, change.beyond_noise) == expected[2:]
