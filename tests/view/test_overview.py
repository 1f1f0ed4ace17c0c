"""The overview is plain JSON, tells how far a run is, and shows what the metrics hold and nothing else."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import UPDATES, make_run

from dinghai.errors import InputError
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.summary import load_run_metrics
from dinghai.view.overview import overview
from dinghai.view.report_charts import POINTS_AT_MOST, curves, points, region_charts, update_charts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only."""
    return make_run(tmp_path_factory.mktemp("overview") / "seen", steps=5)


def chart(charts: list[dict[str, Any]], title: str) -> dict[str, Any]:
    return next(one for one in charts if one["title"] == title)


def as_metrics(*rows: dict[str, Any]) -> Metrics:
    return Metrics([{"step": step, **row} for step, row in enumerate(rows, start=1)])


def test_it_is_json_and_names_the_run(run: Path) -> None:
    seen = overview(run)
    assert json.loads(json.dumps(seen, allow_nan=False)) == json.loads(json.dumps(seen))
    assert seen["name"] == "seen"
    assert seen["verdict"]
    assert {"facts", "curves", "regions_over_time", "by_update", "rule", "costs", "settings", "versions"} <= set(seen)


def test_metrics_that_were_read_already_are_not_read_again(run: Path) -> None:
    metrics = load_run_metrics(run)
    shorter = Metrics(metrics.rows[:3])
    assert overview(run, shorter)["steps"] == 2
    assert overview(run, metrics) == overview(run)


def test_a_run_that_made_its_steps_is_finished(run: Path) -> None:
    seen = overview(run)
    assert (seen["state"], seen["steps"], seen["steps_planned"]) == ("finished", 5, 5)


def test_an_unfinished_run_runs_while_it_writes_and_stops_later_or_as_it_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "half", steps=4)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert overview(folder)["state"] == "running"
    (folder / "failure.json").write_text('{"message": "logp_new is not finite"}')
    assert overview(folder)["state"] == "stopped"
    (folder / "failure.json").unlink()
    long_ago = time.time() - 3_600
    for name in ("metrics.jsonl", "config.json"):
        os.utime(folder / name, (long_ago, long_ago))
    seen = overview(folder)
    assert (seen["state"], seen["steps"], seen["steps_planned"]) == ("stopped", 3, 4)


def test_the_rule_is_shown_where_the_run_has_it_and_damage_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "ruled", steps=1)
    (folder / "rule.json").unlink(missing_ok=True)
    assert overview(folder)["rule"] is None
    (folder / "rule.json").write_text("{")
    seen = overview(folder)
    assert seen["rule"] is None
    assert any("rule.json is damaged" in note for note in seen["notes"])


def test_conditions_of_what_is_switched_off_are_not_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=1)
    facts = {"version": 1, "name": "grpo", "title": "GRPO", "paper": "", "formula": "r·A", "ratio": "token"}
    facts |= {"zero": "A > 0 and r > 1+eps_high; A < 0 and r > dual_clip", "reduction": "token-mean", "boundaries": []}
    for dual_clip, shown in ((None, "A > 0 and r > 1+eps_high"), (3.0, facts["zero"])):
        parameters = {"parameters": {"eps_high": 0.2, "dual_clip": dual_clip}}
        missing = dict.fromkeys(("weights", "boundaries_vary_with", "note"))
        (folder / "rule.json").write_text(json.dumps(facts | parameters | missing))
        assert overview(folder)["rule"]["zero"] == shown


def test_what_a_rule_of_ones_own_says_is_made_safe(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "own", steps=1)
    facts = {"version": 1, "name": "mine", "title": "\x1b[31mred", "paper": "", "formula": "r\u202eA", "zero": ""}
    facts |= {"ratio": "token", "reduction": "token-mean", "parameters": {"eps\x07": 0.2}, "boundaries": []}
    facts |= {"boundaries_vary_with": None, "weights": None, "note": None}
    (folder / "rule.json").write_text(json.dumps(facts))
    rule = overview(folder)["rule"]
    assert (rule["title"], rule["formula"]) == ("\\x1b[31mred", "r\\u202eA")
    assert rule["parameters"] == {"eps\\x07": 0.2}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        overview(tmp_path)


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("kl_ref_k1", "KL to the reference"),
        ("kl_ref_k3", "KL to the reference"),
        ("kl_ref_beta", "Weight of the KL to the reference"),
        ("critic/explained_variance", "Critic"),
        ("correction/dropped_fraction", "Rollout correction"),
        ("correction/kl_sampler_old_k3", "KL(sampler‖old)"),
        ("clip/log_ratio_abs_max", "Furthest token"),
        ("clip/ess_fraction", "Effective sample size"),
        ("grad_norm_mean", "Gradient norm"),
    ],
)
def test_what_only_some_runs_have_gets_its_curve(key: str, title: str) -> None:
    found = curves(as_metrics({key: 0.25}, {key: 0.5}))
    assert [one["title"] for one in found] == [title]
    assert found[0]["series"][0]["points"] == [[1, 0.25], [2, 0.5]]
    assert found[0]["note"]


def test_a_weight_that_stays_the_same_is_a_setting_and_no_curve() -> None:
    assert curves(as_metrics({"kl_ref_beta": 0.1}, {"kl_ref_beta": 0.1})) == []


def test_parts_of_the_reward_are_curves_of_their_own_with_safe_names() -> None:
    row = {"reward/mean": 1.0, "reward/task/mean": 0.5, "reward/b\x1b/mean": 0.5}
    names = [one["name"] for one in chart(curves(as_metrics(row)), "Reward")["series"]]
    assert names == ["reward", "b\\x1b", "task"]


def test_bars_by_update_show_the_regions_of_the_areas_over_time(run: Path) -> None:
    """The same two measures: tokens outside the band, and the share of gradient removed."""
    metrics = load_run_metrics(run)
    by_update, over_time = update_charts(metrics), region_charts(metrics)
    for bars, areas in (
        ("Outside the band, or dropped, by update", "Outside the band, or dropped"),
        ("Gradient removed, by update", "Gradient removed by region"),
    ):
        found = chart(by_update, bars)
        assert found["stacked"]
        assert len(found["labels"]) == UPDATES
        assert [one["name"] for one in found["series"]] == [one["name"] for one in chart(over_time, areas)["series"]]
        assert all(one["values"][0] == 0 for one in found["series"])  # at the first update r is 1
        assert any(one["values"][-1] > 0 for one in found["series"])


def test_bars_are_means_over_the_tokens_and_not_over_the_steps() -> None:
    def row(tokens: int, share: float) -> dict[str, Any]:
        entry = {"update": 0, "tokens": tokens, "signal_tokens": tokens, "region/escaped_fraction": share}
        return {"by_update": [entry | {"gradient_removed/total": 0.0}]}

    found = chart(update_charts(as_metrics(row(900, 0.1), row(100, 0.6))), "Outside the band, or dropped, by update")
    assert found["series"] == [{"name": "escaped", "values": [0.15]}]


def test_what_never_happened_has_no_bars() -> None:
    entry = {"update": 0, "tokens": 9, "signal_tokens": 9, "stopped_fraction": 0.0, "kl_old_new_k3": 0.0}
    metrics = as_metrics({"by_update": [entry | {"region/escaped_fraction": 0.0}]})
    assert update_charts(metrics) == []


@pytest.mark.parametrize("count", [POINTS_AT_MOST, POINTS_AT_MOST + 1, 1_000, 100_003])
def test_a_thinned_curve_keeps_every_extreme(count: int) -> None:
    rows = [{"step": step, "x": math.sin(step * 12.9898) * 43758.5453 % 1} for step in range(1, count + 1)]
    found = points(rows, "x")
    assert len(found) <= POINTS_AT_MOST
    assert found[0][0] == 1
    low, high = min(row["x"] for row in rows), max(row["x"] for row in rows)
    assert min(point[2] if len(point) > 2 else point[1] for point in found) == pytest.approx(low, rel=1e-4)
    assert max(point[3] if len(point) > 2 else point[1] for point in found) == pytest.approx(high, rel=1e-4)
    assert [point[0] for point in found] == sorted({point[0] for point in found})


def test_what_is_not_finite_is_kept_beside_what_is() -> None:
    rows = [{"step": step, "x": math.nan if step % 2 else -math.inf} for step in range(1, 2_001)]
    rows[9]["x"] = 3.0
    found = points(rows, "x")
    assert [1, "NaN"] in found
    assert [10, 3.0, 3.0, 3.0] in found
    assert {point[1] for point in found if point[0] != 10} == {"NaN", "-Infinity"}
    assert len(found) <= 2 * POINTS_AT_MOST
