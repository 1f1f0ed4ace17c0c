"""A run's replay for its page: its sums are those of direct replays, and each token's place on a slider is right.

Run: pytest tests/lens/test_replay_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import recorded

from dinghai.lens.completions import Limits, group, group_heads
from dinghai.lens.replay import KEYS, Minibatch, cosine, recorded_objective, replay, sums_of
from dinghai.lens.replay_candidates import other_rules
from dinghai.lens.replay_grid import with_bounds
from dinghai.lens.replay_page import replay_group, replay_groups, replay_page
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader

Json = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("runs"), "run", steps=2)


@pytest.fixture(scope="module")
def page(run: Path) -> Json:
    found = replay_page(run)
    assert found is not None
    return found


def test_it_is_json_and_says_what_it_is_made_from(run: Path, page: Json) -> None:
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    reader = TraceReader(run / "trace")
    rows = sum(len(read_tokens(reader, step)) for step in (1, 2))
    assert page["about"] | {"note": ""} == {
        "steps": [1, 2],
        "recorded_steps": 2,
        "updates": [0, 1, 2, 3],
        "tokens": rows,
        "signal": page["about"]["signal"],
        "note": "",
    }
    assert page["about"]["note"].startswith("A replay is first-order.")
    assert page["reproduced"] == {"tokens": rows, "equal": rows}
    assert page["own"] == {
        "label": "grpo eps_low=0.2 eps_high=0.2",
        "rule": "grpo",
        "low": 0.2,
        "high": 0.2,
        "unit": "offset from 1",
    }
    assert page["keys"] == list(KEYS)
    assert {mark["name"] for mark in page["grid"]["marks"]} >= {"DAPO"}


def test_the_runs_own_place_in_the_grid_has_the_runs_own_sums(page: Json) -> None:
    grid, own = page["grid"], np.array(page["own_sums"])
    low, high = grid["own"]
    both = np.array(grid["low_sums"])[:, low] + np.array(grid["high_sums"])[:, high]
    assert np.allclose(both, own, rtol=1e-5)
    assert cosine(both.sum(axis=0), own.sum(axis=0)) == pytest.approx(1, abs=1e-5)
    assert own[:, KEYS.index("differ")].sum() == 0
    stopped = np.array(grid["low_sums"])[..., KEYS.index("stopped")].sum(axis=0)
    assert stopped[0] > stopped[-1]
    assert (np.diff(stopped) <= 0).all()  # wider and wider


def test_rules_have_the_sums_of_direct_replays_and_show_where_they_disagree(run: Path, page: Json) -> None:
    reader = TraceReader(run / "trace")
    assert len(page["rules"]) == 8
    for shown, rule in zip(page["rules"], other_rules(recorded_objective(run)), strict=True):
        assert (shown["key"], shown["rule"], shown["label"]) == (rule.key, rule.rule, rule.label)
        direct = [
            sum(sums_of(replay(reader, step, update, rule.policy_loss)) for step in (1, 2)) for update in range(4)
        ]
        assert np.allclose(shown["sums"], direct, rtol=1e-5)
        for at in shown["disagree"]:
            there = replay(reader, at["step"], at["update"], rule.policy_loss)
            here_N = (there.tokens.sample == at["sample"]) & (there.tokens.position == at["position"])
            assert there.differ_N[here_N].tolist() == [True]


@pytest.mark.parametrize("update, limits", [(3, None), (1, Limits(2, 5))], ids=["all", "cut short"])
def test_each_token_stands_where_its_fate_changes(run: Path, page: Json, update: int, limits: Limits | None) -> None:
    """Asked of the objective at every value of both bounds, token for token in the order of the token view."""
    reader, own, grid = TraceReader(run / "trace"), recorded_objective(run), page["grid"]
    shown = [group(reader, 1, head["group"], limits=limits) for head in group_heads(reader, 1)]
    tokens = read_tokens(reader, 1, update)
    moved = 0
    for prompt, found in zip(shown, replay_groups(run, [(one, update) for one in shown], page), strict=True):
        rows = [
            int(np.flatnonzero((tokens.sample == one["id"]) & (tokens.position == position))[0])
            for one in prompt["samples"]
            if str(update) in one["updates"]
            for position in range(len(one["token"]))
        ]
        assert len(found["grid"]["side"]) == len(rows) == sum(count for _, count in found["samples"])
        for side, name in ((-1, "low"), (1, "high")):
            other = grid["high" if side < 0 else "low"][0]
            stopped = [
                Minibatch(tokens)
                .replay(with_bounds(own, *((eps, other) if side < 0 else (other, eps))))
                .stopped_N[rows]
                for eps in grid[name]
            ]
            for row, (on, kept_from) in enumerate(zip(found["grid"]["side"], found["grid"]["kept_from"], strict=True)):
                if on == side:
                    fates = [bool(at[row]) for at in stopped]
                    if kept_from is None:
                        assert len(set(fates)) == 1
                    else:
                        assert fates == [place < kept_from for place in range(len(fates))]
                        moved += 1
        for rule in other_rules(own):
            direct = replay(reader, 1, update, rule.policy_loss)
            assert found["rules"][rule.key]["region"] == direct.region_N[rows].tolist()
            assert found["rules"][rule.key]["effect"] == direct.effect_N[rows].tolist()
            assert np.allclose(found["rules"][rule.key]["weight"], direct.weight_N[rows], rtol=1e-6)
    assert moved > 0


def test_one_prompt_is_as_among_many(run: Path, page: Json) -> None:
    prompt = group(TraceReader(run / "trace"), 2, 1)
    assert replay_group(run, 2, 1, 3, page) == replay_groups(run, [(prompt, 3)], page)[0]


def test_rules_without_a_pair_of_bounds_have_no_sliders_and_context_rules_decide_by_minibatch(tmp_path: Path) -> None:
    run = recorded(tmp_path, "run", {"objective": {"rule": "clip_cov", "parameters": {"cov_low": 0.01, "share": 0.1}}})
    page = replay_page(run)
    assert page is not None
    assert page["grid"] is None
    assert page["reproduced"]["equal"] == page["reproduced"]["tokens"]
    assert page["own"]["low"] == 1.0
    found = replay_group(run, 1, 0, 1, page)
    assert found["grid"] is None
    assert set(found["rules"]) == {rule["key"] for rule in page["rules"]}


def test_a_run_without_a_trace_has_none(tmp_path: Path) -> None:
    assert replay_page(tmp_path) is None
