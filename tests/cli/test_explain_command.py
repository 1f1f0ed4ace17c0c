"""`dinghai explain`: what it prints is what the rules decide, in both languages, and what it refuses.

Run: pytest tests/cli/test_explain_command.py
"""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinghai.catalogue.explain_rules import missing_rules
from dinghai.catalogue.explain_token import gradient_kind
from dinghai.catalogue.lone_tokens import decide_alone
from dinghai.cli import main
from dinghai.objective import RULES, find_rule

OWN = '''
"""Half the gradient everywhere."""
from dinghai.objective import register_rule

@register_rule("half", title="Half", paper="unpublished", formula="w = A/2", zero="never",
               weight=lambda x, p: 0.5 * x.advantage)
def half_surrogate(x, p):
    """J = A/2·log π."""
    return 0.5 * x.advantage * x.logp_new
'''


@pytest.fixture(autouse=True)
def wide_english_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANGUAGE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def own_rule(tmp_path: Path) -> Iterator[Path]:
    """A file with a rule, which is forgotten again afterwards."""
    before = dict(RULES)
    path = tmp_path / "own.py"
    path.write_text(OWN, "utf-8")
    yield path
    RULES.clear()
    RULES.update(before)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints, each line without the spaces at its end."""
    assert main(["explain", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return "\n".join(line.rstrip() for line in shown.out.splitlines())


def test_a_good_token_that_was_pushed_too_far(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: r·A = 1.43, clip(r)·A = 1.2, the smaller is a constant."""
    shown = said(capsys, "--ratio", "1.43", "--advantage", "1")
    assert "J = min(r·A, clip(r, 1-eps_low, 1+eps_high)·A)" in shown
    assert "= min(1.43·1, clip(1.43, 1-0.2, 1+0.2)·1)\n            = 1.2\n" in shown
    assert "r·A = 1.43    clip(r)·A = 1.2\n" in shown
    assert "1.2 is smaller than 1.43: min takes clip(r)·A" in shown
    assert re.search(r"weight +w = 0\n +without a rule it would be r·A = 1.43\n", shown)
    assert re.search(r"region +overshoot +a good token, already pushed far\n", shown)
    assert re.search(r"effect +stopped\n", shown)
    assert "The value is constant here, so the gradient is exactly zero." in shown


def test_the_case_that_is_told_the_wrong_way_round(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "--ratio", "0.5", "--advantage", "-1", "--lang", "zh")
    assert "r·A = -0.5    clip(r)·A = -0.8" in shown
    assert "-0.8 小于 -0.5：min 取 clip(r)·A" in shown
    assert "目标值在这里是常数，所以梯度恰好为零。" in shown
    assert "escaped 已避开" in shown


def test_without_an_advantage_both_signs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "--ratio", "1.43")
    assert "r = 1.43, A = 1\n" in shown
    assert "r = 1.43, A = -1\n" in shown
    assert "overshoot" in shown
    assert "relapse" in shown


def test_parameters_move_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--ratio", "1.25", "--advantage", "1")
    assert "overshoot" in said(capsys, *arguments)
    assert "inside" in said(capsys, *arguments, "--rule", "dapo", "--eps_high", "0.28")
    assert "dual" in said(capsys, "--ratio", "4", "--advantage", "-1", "--dual_clip", "3")


@pytest.mark.parametrize(
    ("ratio", "advantage", "rule", "kind"),
    [
        (1.43, 1.0, "ppo", "flat"),
        (0.5, -1.0, "ppo", "flat"),
        (1.1, 1.0, "ppo", "up"),
        (1.2, 1.0, "ppo", "up"),  # on the bound, where the derivative from the side of 1 counts
        (1.43, -1.0, "ppo", "down"),
        (1.43, 0.0, "ppo", "no_signal"),
        (4.0, -1.0, "dual_clip", "flat"),
        (1.5, 1.0, "ce_gppo", "restored"),  # a constant value, and a gradient all the same
        (2.5, 1.0, "tr_ppo", "held"),  # a value that moves, and no gradient
        (1.25, 1.0, "spo", "turning"),  # with eps 0.25 the surrogate's peak, to the last bit
        (1.5, 0.0, "dro", "pulled"),
        (6.0, 1.0, "cispo", "up"),
    ],
)
def test_the_sentence_about_the_gradient_is_the_true_one(ratio: float, advantage: float, rule: str, kind: str) -> None:
    found = find_rule(rule)
    parameters = found.parse({"eps": 0.25} if rule == "spo" else {})
    p_old = 0.15
    token = decide_alone(found, parameters, ratio, advantage, p_old)
    assert gradient_kind(found, parameters, token, p_old) == kind


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_is_explained_with_its_own_numbers(
    name: str, language: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = find_rule(name)
    near = rule.ratio_levels[0] in ("sequence", "sequence-token")
    for ratio in (0.9991, 1.0009) if near else (0.3, 0.97, 1.6):
        shown = said(capsys, "--ratio", str(ratio), "--advantage=-1.5", "--rule", name, "--lang", language)
        token = decide_alone(rule, rule.parse({}), ratio, -1.5, 0.05)
        assert f"= {token.value:.6g}\n" in shown
        assert f"= {token.weight:.6g}\n" in shown
        assert token.region.name.lower() in shown


def test_a_rule_that_needs_other_tokens_says_that_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    for missing in missing_rules():
        shown = said(capsys, "--ratio", "1.5", "--rule", missing["name"])
        assert "here the token is alone in it" in shown


def test_the_ratio_of_a_sequence_is_named_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the geometric mean of its tokens' ratios" in said(capsys, "--ratio", "1.001", "--rule", "gspo")
    assert "the product of its tokens' ratios" in said(capsys, "--ratio", "1.2", "--rule", "vespo")


def test_the_probability_is_named_where_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert "π_old" not in said(capsys, "--ratio", "1.5", "--probability", "0.2")
    assert "π_old = 0.2, π_new = 0.3" in said(capsys, "--ratio", "1.5", "--rule", "dppo_tv", "--probability", "0.2")


def test_a_rule_of_ones_own_is_explained(capsys: pytest.CaptureFixture[str], own_rule: Path) -> None:
    shown = said(capsys, "--rule-file", str(own_rule), "--rule", "half", "--ratio", "1.5", "--advantage", "1")
    assert "w = A/2" in shown
    assert "w = 0.5\n" in shown
    assert main(["explain", "--rule-file", str(own_rule), "--rule", "half", "--page", str(own_rule) + ".html"]) == 2


@pytest.mark.parametrize(
    ("variable", "expected"), [("zh_CN.UTF-8", "带内"), ("en_GB.UTF-8", "inside"), ("C", "inside")]
)
def test_the_language_is_that_of_the_system(
    variable: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", variable)
    assert expected in said(capsys)


def test_without_numbers_the_cases_are_listed_with_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys)
    for part in ("overshoot", "relapse", "forgotten", "escaped", "dual", "--ratio 1.43", "--open"):
        assert part in shown


def test_the_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    assert said(capsys, "--page", str(path)) == str(path)
    assert path.read_text("utf-8").startswith("<!doctype html>")


def test_the_page_opens_with_the_numbers_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)) or True)
    shown = said(capsys, "--open", "--ratio", "1.3", "--advantage", "-1", "--rule", "dapo", "--lang", "zh")
    path = Path(shown.splitlines()[-1])
    assert opened == [path.as_uri()]
    text = path.read_text("utf-8")
    assert '"start":{"rule":"dapo","ratio":1.3,"advantage":-1.0}' in text
    assert '"language":"zh"' in text
    path.unlink()


def test_without_a_browser_the_page_is_there_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    path = tmp_path / "page.html"
    assert "open this file yourself" in said(capsys, "--open", "--page", str(path))
    assert path.is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ratio", "0"], "--ratio is 0"),
        (["--ratio", "-1.5"], "--ratio is -1.5"),
        (["--ratio", "nan"], "--ratio is nan"),
        (["--ratio", "inf"], "--ratio is inf"),
        (["--ratio", "much"], "--ratio"),
        (["--ratio", "1.2", "--advantage", "inf"], "--advantage is inf"),
        (["--advantage", "1"], "add its ratio"),
        (["--ratio", "1.2", "--rule", "pp0"], "did you mean 'ppo'"),
        (["--ratio", "1.2", "--eps_hig", "0.3"], "did you mean 'eps_high'"),
        (["--ratio", "1.2", "--eps_low", "-1"], "eps_low must be a number"),
        (["--ratio", "1.2", "--eps_low", "some"], "must be a number"),
        (["--ratio", "1.2", "--lang", "fr"], "--lang"),
        (["--ratio", "1.2", "--probability", "1.5"], "lies between 0 and 1"),
        (["--ratio", "4", "--probability", "0.3", "--rule", "dppo_kl"], "give a --probability below 0.25"),
        (["--page", "x.html", "--rule", "gmpo"], "the page cannot draw gmpo"),
    ],
)
def test_what_makes_no_sense_is_refused_with_how_to_mend_it(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2
    shown = capsys.readouterr()
    assert expected in shown.err
    assert shown.out == ""


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--page", str(tmp_path / "none" / "x.html")]) == 1
    assert "none" in capsys.readouterr().err
