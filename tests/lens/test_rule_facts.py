"""rule.json: written when a run begins, read back, and refused in words where it is damaged or newer.

Run: pytest tests/lens/test_rule_facts.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dinghai.errors import InputError, RunFailed
from dinghai.files import json_line
from dinghai.lens import rule_facts
from dinghai.lens.rule_facts import RULE_FILE, load_rule_facts
from dinghai.objective import PolicyLoss
from dinghai.objective.probe import RULE_FACTS_VERSION, probe


def written(folder: Path, **changes: Any) -> Path:
    facts = probe(PolicyLoss("grpo", eps_low=0.2, eps_high=0.28, dual_clip=3.0))
    (folder / RULE_FILE).write_text(json_line(facts | changes), "utf-8")
    return folder


def test_what_was_found_out_is_read_back(tmp_path: Path) -> None:
    facts = load_rule_facts(written(tmp_path))
    assert facts == json.loads((tmp_path / RULE_FILE).read_text("utf-8"))
    assert facts == probe(PolicyLoss("grpo", eps_low=0.2, eps_high=0.28, dual_clip=3.0))


def test_both_sides_know_the_same_version() -> None:
    assert rule_facts.VERSION == RULE_FACTS_VERSION


def test_a_run_from_before_has_none(tmp_path: Path) -> None:
    assert load_rule_facts(tmp_path) is None


def test_infinite_parameters_are_words(tmp_path: Path) -> None:
    facts = load_rule_facts(written(tmp_path, parameters={"cap": math.inf, "dual_clip": None}))
    assert facts is not None
    assert facts["parameters"] == {"cap": "Infinity", "dual_clip": None}


def test_keys_that_are_not_ours_are_left_out(tmp_path: Path) -> None:
    facts = load_rule_facts(written(tmp_path, colour="red"))
    assert facts is not None
    assert "colour" not in facts


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="upgrade Dinghai"):
        load_rule_facts(written(tmp_path, version=RULE_FACTS_VERSION + 1))


BOUNDARY = {"advantage": 1, "log_ratio": 0.1, "ratio": 1.1, "below": "inside", "above": "overshoot"}


@pytest.mark.parametrize(
    "changes",
    [
        {"title": 3},
        {"note": []},
        {"parameters": {"eps": "x"}},
        {"parameters": [1]},
        {"boundaries": None},
        {"boundaries": ["x"]},
        {"boundaries": [BOUNDARY | {"advantage": 0}]},
        {"boundaries": [BOUNDARY | {"ratio": "Infinity"}]},
        {"boundaries": [BOUNDARY | {"above": "<script>"}]},
        {"weights": {"log_ratio": [0], "good": [1]}},
        {"weights": {"log_ratio": [0], "good": [1], "bad": [1, 2]}},
        {"weights": {"log_ratio": [0], "good": [1], "bad": ["x"]}},
    ],
)
def test_damage_is_told_with_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RunFailed, match=r"rule\.json is damaged"):
        load_rule_facts(written(tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "[" * 10_000, "\x00", '{"version": 1'])
def test_a_torn_file_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / RULE_FILE).write_text(content)
    with pytest.raises(RunFailed, match=r"rule\.json is damaged"):
        load_rule_facts(tmp_path)
