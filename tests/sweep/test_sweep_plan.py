"""What a sweep varies, and which trials follow from it. Nothing is trained.

Run: pytest tests/sweep/test_sweep_plan.py
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from dinghai.config.load import load_settings
from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError
from dinghai.sweep.axes import parse_axes
from dinghai.sweep.plan import PLAN_FILE, Plan, as_json, make_plan, read_plan


def load(values: dict[str, str], *overrides: str) -> TrainSettings:
    return load_settings(None, [*overrides, *(f"--{key}={value}" for key, value in values.items())])


def plan_of(*varied: str, seeds: int = 2, trials: int | None = None) -> Plan:
    return make_plan(parse_axes(list(varied)), seeds, load, trials)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("update.lrr=1", r"--vary update\.lrr: there is no such setting; did you mean update\.lr or"),
        ("update.lr", "has no values: write KEY=VALUE,VALUE"),
        ("update.lr=1e-3,,1e-4", "has an empty value between its commas"),
        ("update.lr=1e-3,1e-3", "names 1e-3 twice"),
        ("update.lr=1e-3:1e-4", "the first number of a range must be the smaller"),
        ("update.lr=0:1e-4:log", "a range in the logarithm must begin above 0"),
        ("update.lr=1e-5:1e-4:lg", "a range is LOW:HIGH, or LOW:HIGH:log"),
        ("run.seed=1,2", r"run\.seed is not varied by --vary; use --seeds N"),
        ("rewards=a,b", "use --reward, for all trials alike"),
    ],
)
def test_what_cannot_be_varied_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_axes([text])


def test_a_setting_is_varied_once() -> None:
    with pytest.raises(InputError, match=r"--vary update\.lr is given twice"):
        parse_axes(["update.lr=1e-3", "--update.lr=1e-4"])


def test_lists_may_be_values() -> None:
    (axis,) = parse_axes(["update.betas=[0.9,0.95],[0.9,0.99]"])
    assert axis.values == ("[0.9,0.95]", "[0.9,0.99]")
    plan = make_plan([axis], 1, load)
    assert [t.tables["update"]["betas"] for t in plan.trials] == [[0.9, 0.95], [0.9, 0.99]]


def test_a_grid_has_every_combination_with_every_seed() -> None:
    plan = plan_of("objective.eps-high=0.1,0.2", "update.epochs=1,2,4", seeds=3)
    found = {
        (t.tables["objective"]["parameters"]["eps_high"], t.tables["update"]["epochs"], t.tables["run"]["seed"])
        for t in plan.trials
    }
    assert found == {(eps, epochs, seed) for eps in (0.1, 0.2) for epochs in (1, 2, 4) for seed in (0, 1, 2)}
    assert len(plan.trials) == 18
    assert plan.trials[0].name == "eps_high-0.1_epochs-1_seed-0"
    assert len({t.name for t in plan.trials}) == 18
    # 0.2 is what the rule has anyhow, and 2 epochs are the default.
    assert plan.label(plan.reference) == "eps_high 0.2, epochs 2"
    assert plan.reference_is_base


def test_without_the_base_the_first_is_the_reference() -> None:
    plan = plan_of("update.lr=1e-3,1e-2")
    assert (plan.reference, plan.reference_is_base) == (0, False)


def test_the_seeds_begin_at_the_base_s() -> None:
    plan = make_plan([], 3, lambda values: load(values, "--run.seed=7"))
    assert [(t.name, t.seed) for t in plan.trials] == [("base_seed-7", 7), ("base_seed-8", 8), ("base_seed-9", 9)]


def test_names_are_folders_and_distinct() -> None:
    plan = plan_of("rollout.overlong=keep,mask", "task.forget_carry=0.5,0.50", seeds=1)
    assert len({t.name for t in plan.trials}) == 4
    plan = plan_of("update.betas=[0.9,0.95],[0.9;0.95]".replace(";", ", "), seeds=1)
    assert [t.name for t in plan.trials] == ["betas-0.9-0.95_seed-0", "betas-0.9-0.95-1_seed-0"]


def test_every_combination_is_valid_before_any_is_trained() -> None:
    with pytest.raises(InputError, match=r"--update\.epochs is 0, but must be a whole number >= 1"):
        plan_of("update.epochs=1,0")
    with pytest.raises(InputError, match="unknown rule 'ppoo'"):
        plan_of("objective.rule=ppo,ppoo")
    with pytest.raises(InputError, match=r"update\.minibatches \(512\) is more than the completions"):
        plan_of("update.minibatches=2,512")


def test_warnings_are_said_once() -> None:
    plan = plan_of("objective.rule=grpo,gspo", "objective.eps_high=0.2,0.3")
    assert len([text for text in plan.warnings if text.startswith("eps_high = 0.2 ")]) == 1
    assert len(plan.warnings) == len(set(plan.warnings))


def test_a_grid_does_not_draw() -> None:
    with pytest.raises(InputError, match=r"list them, as in update\.lr=0\.0001,0\.001, or draw them with --search"):
        plan_of("update.lr=1e-4:1e-3:log")


def test_a_search_draws_in_its_ranges_and_can_be_extended() -> None:
    varied = "update.lr=1e-4:1e-2:log", "update.epochs=1:4", "objective.rule=grpo,cispo"
    few, many = plan_of(*varied, trials=8), plan_of(*varied, trials=200, seeds=1)
    assert few.settings == many.settings[:9]
    base, *drawn = many.settings
    assert base == {"update.lr": "0.0004", "update.epochs": "2", "objective.rule": "grpo"}
    assert many.reference == 0
    assert many.reference_is_base
    rates = [float(values["update.lr"]) for values in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    # Evenly in the logarithm: half of them below the geometric mean. Seven standard deviations are 50 of 200.
    assert abs(sum(rate < 1e-3 for rate in rates) - 100) < 50
    assert {values["update.epochs"] for values in drawn} == {"1", "2", "3", "4"}
    assert {values["objective.rule"] for values in drawn} == {"grpo", "cispo"}
    # What is shown is what was set.
    assert all(t.tables["update"]["lr"] == float(many.settings[t.setting]["update.lr"]) for t in many.trials)


def test_a_search_that_finds_too_little_says_so() -> None:
    with pytest.raises(InputError, match="--trials 5 is more than there are different settings"):
        plan_of("update.epochs=1,2", trials=5)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of("update.lr=1e-4:1e-2:log", "objective.rule=grpo,cispo", trials=3)
    (tmp_path / PLAN_FILE).write_text(as_json(plan), "utf-8")
    read = read_plan(tmp_path)
    assert as_json(read) == as_json(plan)
    assert math.isnan(read.axes[1].low)
    assert dataclasses.replace(read, axes=[]) == dataclasses.replace(plan, axes=[])


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no sweep: it holds no plan\.json"):
        read_plan(tmp_path)
    for text in ("{", "[]", json.dumps({"format": 1}), json.dumps({"format": 2})):
        (tmp_path / PLAN_FILE).write_text(text, "utf-8")
        with pytest.raises(InputError, match="repeat its command"):
            read_plan(tmp_path)
