"""The explainer: its words in both languages, its examples and claims, and the page that is built of them.

Run: pytest tests/view/test_explain_page.py
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from chinese_text import english_words

from dinghai.catalogue.explain_rules import drawn_rules, missing_rules
from dinghai.catalogue.lone_tokens import decide_alone
from dinghai.objective import RULES, Effect, Region, find_rule
from dinghai.view import bundle
from dinghai.view.explain import CASES, LANGUAGES, explain_page

ROOT = Path(__file__).parents[2]
SOURCES = [
    *sorted((ROOT / "src/dinghai/view/page").glob("explain*.js")),
    ROOT / "src/dinghai/view/explain.py",
    *sorted((ROOT / "src/dinghai/catalogue").glob("explain*.py")),
]

WORDS: dict[str, dict[str, str]] = json.loads(bundle.page_file("explain_words.json"))
CLAIMS: list[dict[str, Any]] = json.loads(bundle.page_file("explain_claims.json"))
RECORDED: dict[str, Any] = json.loads(bundle.page_file("explain_examples.json"))


@pytest.fixture(scope="module")
def page() -> str:
    return explain_page(drawn_rules(), missing_rules()).decode()


# --- words -----------------------------------------------------------------------------------------------------------


def test_every_text_is_there_in_both_languages() -> None:
    assert set(WORDS["en"]) == set(WORDS["zh"])
    assert [key for language in LANGUAGES for key, text in WORDS[language].items() if not text.strip()] == []


@pytest.mark.parametrize("key", list(WORDS["en"]))
def test_both_languages_leave_the_same_places_for_numbers(key: str) -> None:
    places = [
        sorted(name for _, name, _, _ in string.Formatter().parse(WORDS[language][key]) if name)
        for language in LANGUAGES
    ]
    assert places[0] == places[1]


def test_no_english_is_left_in_the_chinese() -> None:
    chinese = {**WORDS["zh"], **WORDS["registry"]}
    left = {key: english_words(text) for key, text in chinese.items() if key != "language.other"}
    assert {key: words for key, words in left.items() if words} == {}


def test_no_chinese_is_left_in_the_english() -> None:
    chinese = [key for key, text in WORDS["en"].items() if re.search(r"[\u4e00-\u9fff，。：；（）]", text)]
    assert chinese == ["language.other"]


def test_every_text_is_said_somewhere() -> None:
    """Keys are literals in the code, or begin or end there: `region.${name}`, f"gradient.{kind}"."""
    literals = set()
    for source in SOURCES:
        literals |= set(re.findall(r"""["'`]([\w.${}()' ]+)["'`]""", source.read_text("utf-8")))
    patterns = [re.sub(r"\\?\$?\\\{.*?\\\}", r"[\\w.]+", re.escape(text)) for text in literals if "." in text]
    said = [re.compile(pattern) for pattern in patterns] + [re.compile(re.escape(text)) for text in literals]
    assert [key for key in WORDS["en"] if not any(pattern.fullmatch(key) for pattern in said)] == []


def test_what_the_registry_says_is_translated_and_nothing_else() -> None:
    """Titles, sources, units and so on, where they hold English words; a translation of what is gone goes too."""
    asked = set()
    drawn = {rule["name"] for rule in drawn_rules()}
    for rule in RULES.values():
        asked |= {rule.title, rule.paper}
        if rule.name not in drawn:
            asked.add(rule.formula)
            continue
        asked.add(rule.zero)
        for info in rule.describe():
            asked |= {info.unit, info.description}
    translated = set(WORDS["registry"])
    assert translated - asked == set()
    assert {text: words for text in asked - translated if (words := english_words(text))} == {}


# --- examples and claims ---------------------------------------------------------------------------------------------


def test_there_is_a_real_token_of_every_case() -> None:
    assert [example["region"] for example in RECORDED["examples"]] == list(CASES)


@pytest.mark.parametrize("example", RECORDED["examples"], ids=lambda example: example["region"])
def test_an_example_is_what_the_rule_decides(example: dict[str, Any]) -> None:
    """The rounded numbers on the page lead to the region and the weight that the run recorded."""
    rule = find_rule(RECORDED["rule"])
    parameters = rule.parse(RECORDED["parameters"])
    token = decide_alone(rule, parameters, example["ratio"], example["advantage"], example["p_old"])
    assert token.region.name.lower() == example["region"]
    assert token.weight == pytest.approx(example["weight"], rel=1e-4)
    assert (token.effect is Effect.STOPPED) == (example["region"] in {"overshoot", "escaped", "dual"})
    assert example["p_old"] * example["ratio"] <= 1


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_a_claim_shows_what_it_says_it_shows(claim: dict[str, Any]) -> None:
    rule = find_rule(claim["rule"])
    token = decide_alone(rule, rule.parse(claim["parameters"]), claim["ratio"], claim["advantage"], claim["p_old"])
    assert token.region.name.lower() == claim["region"]
    assert claim["p_old"] * claim["ratio"] <= 1 or rule.ratio_levels[0] != "token"
    for part in ("claim", "truth"):
        assert f"{part}.{claim['id']}" in WORDS["en"]
    assert f"verdict.{claim['verdict']}" in WORDS["en"]


def test_the_claims_that_are_wrong_about_the_gradient_show_a_gradient_of_zero() -> None:
    """Two claims take the constant value for a constant gradient: the project's reason to exist."""
    by_id = {claim["id"]: claim for claim in CLAIMS}
    assert (by_id["overshoot"]["verdict"], by_id["escaped"]["verdict"]) == ("half", "false")
    for claim, region in ((by_id["overshoot"], Region.OVERSHOOT), (by_id["escaped"], Region.ESCAPED)):
        rule = find_rule(claim["rule"])
        token = decide_alone(rule, rule.parse({}), claim["ratio"], claim["advantage"], claim["p_old"])
        assert (token.region, token.weight, token.effect) == (region, 0.0, Effect.STOPPED)


def test_every_rule_is_on_the_page_or_named_with_the_reason() -> None:
    assert {rule["name"] for rule in [*drawn_rules(), *missing_rules()]} == set(RULES)
    assert {rule["name"]: rule["reason"] for rule in missing_rules()} == {
        "bapo": "minibatch",
        "clip_cov": "minibatch",
        "kl_cov": "minibatch",
        "m2po": "minibatch",
        "gmpo": "sequence",
        "vaco": "sequence",
    }


def test_rules_whose_value_has_a_stop_gradient_are_found_out() -> None:
    """Of them the page must not say that the slope of the value is the weight."""
    held = {rule["name"] for rule in drawn_rules() if rule["holds_constant"]}
    assert held == {"cispo", "dispo", "topr", "aspo", "dppo_tv", "dppo_kl", "vespo", "ce_gppo", "tr_ppo"}


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_the_one_in_docs(page: str) -> None:
    assert (ROOT / "docs" / "explain.html").read_text("utf-8") == page, "run `make docs`"


def test_the_page_is_one_file_that_loads_and_allows_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href|action)\s*=\s*["']|@import|url\((?!#|`)""", page)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_the_scripts_put_text_in_as_text() -> None:
    for source in (ROOT / "src/dinghai/view/page").glob("explain*.js"):
        code = source.read_text("utf-8")
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert forbidden not in code, f"{source.name}: {forbidden}"


def test_a_start_from_the_command_line_cannot_end_the_script(page: str) -> None:
    start = {"rule": "</script><script>window.hit=1</script>", "parameters": {}, "ratio": None}
    hostile = explain_page(drawn_rules(), missing_rules(), start, "zh").decode()
    assert hostile.count("</script>") == page.count("</script>") == 2


def test_a_reader_without_scripts_gets_the_cases_in_both_languages(page: str) -> None:
    shown = page[page.index("<noscript>") : page.index("</noscript>")]
    for language in LANGUAGES:
        assert f'<section lang="{language}">' in shown
        assert WORDS[language]["for.escaped.stopped"] in shown
