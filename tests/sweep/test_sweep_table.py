"""What is said of a sweep: intervals, paired differences, failed trials counted, the figure. Nothing is trained.

Run: pytest tests/sweep/test_sweep_table.py
"""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dinghai.config.load import load_settings
from dinghai.errors import InputError
from dinghai.sweep import results
from dinghai.sweep.axes import parse_axes
from dinghai.sweep.chart import chart
from dinghai.sweep.intervals import interval, paired, t_quantile
from dinghai.sweep.plan import Plan, make_plan
from dinghai.sweep.results import write_results
from dinghai.sweep.table import Measured, Row, as_csv, check_metric, measure, tabulate
from dinghai.sweep.trials import Outcome, Trial


def plan_of(*varied: str, seeds: int = 3, trials: int | None = None) -> Plan:
    return make_plan(
        parse_axes(list(varied)), seeds, lambda v: load_settings(None, [f"--{k}={x}" for k, x in v.items()]), trials
    )


def rows_of(plan: Plan, values: list[list[float | None]], goal: str = "max") -> list[Row]:
    """values: of each setting, of each seed; None: failed."""
    measured = [
        Measured(t.setting, t.seed, "boom" if v is None else None, v, v, v)
        for t in plan.trials
        for v in [values[t.setting][plan.seeds.index(t.seed)]]
    ]
    return tabulate(plan, measured, goal)  # type: ignore[arg-type]


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_t_is_the_tables(degrees: int, t: float) -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, two-sided 95 %."""
    assert t_quantile(degrees) == pytest.approx(t, abs=6e-5)


def test_an_interval() -> None:
    """Mean 3, s = √2.5, n = 5: half-width 2.7764·√(2.5/5)."""
    found = interval([1, 2, 3, 4, 5])
    assert (found.mean, found.n) == (3, 5)
    assert found.high - 3 == pytest.approx(2.7764 * math.sqrt(0.5), abs=1e-4)
    assert 3 - found.low == pytest.approx(found.high - 3)


def test_differences_are_paired() -> None:
    """Seeds that differ by more than the settings do not hide a difference that each seed shows."""
    one, other = {0: 0.1, 1: 0.5, 2: 0.9, 3: 7.0}, {0: 0.11, 1: 0.512, 2: 0.91}
    found = paired(one, other)
    assert found.n == 3
    assert found.high < 0
    assert interval(list(one.values())[:3]).low < 0.11 < interval(list(one.values())[:3]).high


# --- the table -------------------------------------------------------------------------------------------------------


def test_sorted_by_the_mean_and_told_apart_by_intervals() -> None:
    plan = plan_of("update.epochs=1,2,4")
    rows = rows_of(plan, [[0.5, 0.51, 0.52], [0.9, 0.91, 0.92], [0.88, 0.92, 0.9]])
    assert [plan.label(row.setting) for row in rows] == ["epochs 2", "epochs 4", "epochs 1"]
    assert [(row.is_best, row.is_told_apart) for row in rows] == [(True, False), (False, False), (False, True)]
    assert rows[0].difference is None  # the reference, 2 epochs being the default
    assert rows[2].difference is not None
    assert rows[2].difference.mean == pytest.approx(-0.4)
    upside_down = rows_of(plan, [[0.5, 0.51, 0.52], [0.9, 0.91, 0.92], [0.88, 0.92, 0.9]], "min")
    assert plan.label(upside_down[0].setting) == "epochs 1"


def test_failed_trials_are_counted_and_in_no_mean() -> None:
    plan = plan_of("update.epochs=1,2,4")
    rows = rows_of(plan, [[None, None, None], [0.9, None, 0.92], [0.8, 0.7, math.nan]])
    found = {plan.label(row.setting): row for row in rows}
    assert [len(row.values) for row in rows] == [2, 2, 0]
    assert (found["epochs 1"].failed, found["epochs 1"].end) == (3, None)
    assert found["epochs 2"].end.mean == pytest.approx(0.91)  # type: ignore[union-attr]
    assert (found["epochs 4"].failed, found["epochs 4"].without_value) == (0, 1)
    assert found["epochs 4"].difference.n == 1  # type: ignore[union-attr]  (seed 0 alone has both)
    assert rows[-1].setting == 0


def test_a_single_seed_has_no_interval_and_is_told_apart_from_nothing() -> None:
    plan = plan_of("update.epochs=1,2", seeds=1)
    rows = rows_of(plan, [[0.1], [0.9]])
    assert math.isnan(rows[0].end.low)  # type: ignore[union-attr]
    assert not any(row.is_told_apart for row in rows)


# --- from runs to files ----------------------------------------------------------------------------------------------


def finished(folder: Path, plan: Plan, fail: int | None = None, metric: str = "held_out/accuracy") -> list[Outcome]:
    """Outcomes with runs of 20 steps that have the metric at every tenth; the trial `fail` has failed."""
    outcomes = []
    for number, planned in enumerate(plan.trials):
        run = folder / planned.name
        run.mkdir(parents=True, exist_ok=True)
        lines = [{"step": step, "reward/mean": float(step)} for step in range(21)]
        for step in (0, 10, 20):
            lines[step][metric] = 0.5 + 0.01 * planned.setting + 0.001 * planned.seed - 0.1 * (step == 10)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        error = "RuntimeError: | <b>*bad*</b>\x1b[31m" if number == fail else None
        outcomes.append(Outcome(Trial(planned.name, {}), run, "failed" if error else "done", error))
    return outcomes


def test_the_end_the_last_tenth_and_all_steps(tmp_path: Path) -> None:
    plan = plan_of("update.epochs=1,2")
    outcomes = finished(tmp_path, plan)
    first = measure(plan, outcomes, "held_out/accuracy")[0]
    assert (first.end, first.last_tenth, first.whole) == (0.5, 0.5, pytest.approx(0.45))
    reward = measure(plan, outcomes, "reward/mean")[0]
    assert (reward.end, reward.last_tenth, reward.whole) == (20, 19.5, 10.5)  # steps 19 and 20; step 0 trains nothing


def test_a_metric_that_no_run_has(tmp_path: Path) -> None:
    plan = plan_of("update.epochs=1,2")
    outcomes = finished(tmp_path, plan)
    message = r"--metric held_out/acuracy: no run has it; did you mean held_out/accuracy\?"
    with pytest.raises(InputError, match=message):
        measure(plan, outcomes, "held_out/acuracy")
    with pytest.raises(InputError, match=message):
        check_metric(outcomes[0].folder, "held_out/acuracy")


def test_the_files_are_the_same_each_time_and_hold_every_trial(tmp_path: Path) -> None:
    plan = plan_of("objective.eps_high=0.1,0.2", "update.lr=1e-4,1e-3")
    outcomes = finished(tmp_path, plan, fail=4)
    first = {
        path.name: path.read_bytes()
        for path in write_results(plan, outcomes, tmp_path, "held_out/accuracy", "max").files
    }
    again = {
        path.name: path.read_bytes()
        for path in write_results(plan, outcomes, tmp_path, "held_out/accuracy", "max").files
    }
    assert first == again
    assert sorted(first) == ["sweep.csv", "sweep.md", "sweep.svg"]
    lines = list(csv.DictReader(io.StringIO(first["sweep.csv"].decode())))
    assert len(lines) == 12
    assert [line["state"] for line in lines].count("failed") == 1
    assert lines[4]["end"] == ""
    assert float(lines[11]["end"]) == pytest.approx(0.532)
    page = first["sweep.md"].decode()
    assert "1 of 12 trials failed" in page
    assert r"\| \<b\>\*bad\*\</b\>\\x1b\[31m" in page  # shown letter for letter
    ET.fromstring(first["sweep.svg"])


def test_the_csv_does_not_hide_what_failed() -> None:
    plan = plan_of("update.epochs=1,2", seeds=1)
    text = as_csv(plan, [Measured(0, 0, "boom", None, None, None), Measured(1, 0, None, 0.5, 0.5, 0.5)])
    assert "epochs-1_seed-0,1,0,failed,,,,boom" in text


def test_without_matplotlib_there_is_a_word_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    plan = plan_of("update.epochs=1,2")
    written = write_results(plan, finished(tmp_path, plan), tmp_path, "held_out/accuracy", "max")
    assert [path.name for path in written.files] == ["sweep.md", "sweep.csv"]
    assert "pip install 'dinghai[figures]'" in str(written.missing)


@pytest.mark.parametrize(
    ("varied", "trials", "panels", "series", "log"),
    [
        ([], None, 1, 1, False),
        (["objective.eps_high=0.1,0.2"], None, 1, 1, False),
        (["update.lr=1e-4,1e-3"], None, 1, 1, True),
        (["objective.rule=grpo,cispo", "update.lr=1e-4,1e-3"], None, 1, 2, True),
        (["objective.rule=grpo,cispo"], None, 1, 1, False),
        (["update.epochs=1,2", "objective.eps_high=0.1,0.2,0.3", "update.minibatches=1,2"], None, 2, 2, False),
        (["objective.eps_high=0.1:0.3", "update.lr=1e-4:1e-2:log"], 4, 2, 1, False),
    ],
)
def test_every_seed_is_a_point_of_the_figure(
    varied: list[str], trials: int | None, panels: int, series: int, log: bool
) -> None:
    plan = plan_of(*varied, trials=trials)
    rows = rows_of(plan, [[0.1 + n, None, 0.3 + n] for n in range(len(plan.settings))])
    data = chart(plan, rows, "m")
    assert len(data["panels"]) == panels
    assert {len(panel["series"]) for panel in data["panels"]} == {series}
    assert data["panels"][0]["x"]["log"] is log
    points = [point for panel in data["panels"] for one in panel["series"] for point in one["points"]]
    times = panels if plan.search == "random" else 1  # a search is drawn against each setting that it varies
    assert len(points) == times * len(plan.settings)
    assert sum(len(point["values"]) for point in points) == times * 2 * len(plan.settings)
    assert {point["failed"] for point in points} == {1}
    if plan.search == "random":
        assert data["panels"][1]["x"]["log"] is True
