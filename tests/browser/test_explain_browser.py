"""The explainer in a real browser: every rule, both languages, mouse, keyboard, phone, and the numbers it shows.

Run: pytest tests/browser/test_explain_browser.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from dinghai.catalogue.explain_rules import drawn_rules, missing_rules
from dinghai.catalogue.explain_token import gradient_kind
from dinghai.catalogue.lone_tokens import decide_alone
from dinghai.objective import find_rule
from dinghai.view import bundle
from dinghai.view.explain import CASES, Words, explain_page

sys.path.insert(0, str(Path(__file__).parent.parent / "view"))
from chinese_text import english_words

RECORDED = json.loads(bundle.page_file("explain_examples.json"))
CLAIMS = json.loads(bundle.page_file("explain_claims.json"))

# What the page says of its token.
SHOWN = """() => ({
  region: document.querySelector(".verdict .chip").textContent,
  said: document.querySelector(".verdict .said").textContent,
  purpose: document.querySelector(".verdict .purpose").textContent,
  value: document.querySelector(".plot.value .now").textContent,
  weight: document.querySelector(".plot.weight .now").textContent,
  min: document.querySelector(".branch > .said")?.textContent ?? null,
  ratio: document.querySelector(".handle").getAttribute("aria-valuenow"),
})"""


# Follows addresses, each drawn at once, and gives what the page then says. One that is there already is no change, so
# another goes before it.
FOLLOW = """async addresses => {
  const follow = to => new Promise(done => {
    addEventListener("hashchange", done, { once: true });
    location.hash = to;
  });
  const said = [];
  for (const address of addresses) {
    if (location.hash === address) await follow("#");
    await follow(address);
    said.push((SHOWN)());
  }
  return said;
}""".replace("SHOWN", SHOWN)

# All texts, those that are read aloud too.
SEEN_AND_HEARD = """() => {
  const names = ["aria-label", "aria-valuetext", "title"];
  const heard = [...document.querySelectorAll("*")].flatMap(one => names.map(name => one.getAttribute(name) ?? ""));
  return [document.body.innerText, ...heard].join("\\n");
}"""

# What has the focus: its tag, its class, and how its outline is drawn.
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one.querySelector?.(".dot") ?? one);
  return [one.tagName, String(one.className.baseVal ?? one.className), style.outlineStyle];
}"""


@pytest.fixture(scope="session")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "explain.html"
    path.write_bytes(explain_page(drawn_rules(), missing_rules()))
    return path


def go_to(page: Any, **state: Any) -> dict[str, str]:
    """Sets the page by its address and gives what it then says."""
    return go_through(page, [state])[0]


def go_through(page: Any, states: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the page says of each state in turn."""
    return page.evaluate(FOLLOW, [f"#{urlencode(state)}" for state in states])


def number(text: str) -> float:
    """The number after the equals sign, with its true minus."""
    return float(text.split("=")[1].replace("−", "-"))


# --- what it shows is what the rules decide --------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_rule_is_shown_as_the_registry_decides(explainer: Path, open_page: Any, lang: str) -> None:
    """Region, value, weight, the sentence about the gradient and the purpose, for each rule in all quadrants."""
    page, words = open_page(explainer, lang=lang), Words(lang)
    states = []
    for one in drawn_rules():
        ratios = (0.999, 1.0002, 1.001) if one["ratio"] == "sequence" else (0.3, 1.1, 2.9, 7.0)
        states += [{"rule": one["name"], "r": r, "A": a, "p": 0.1} for r in ratios for a in (1.2, -0.7)]
    for state, shown in zip(states, go_through(page, states), strict=True):
        rule = find_rule(state["rule"])
        token = decide_alone(rule, rule.parse({}), state["r"], state["A"], state["p"])
        where, region = f"{state}: {shown}", token.region.name.lower()
        assert shown["region"] == words.region(region), where
        assert number(shown["value"]) == pytest.approx(token.value, rel=1e-3, abs=1e-9), where
        assert number(shown["weight"]) == pytest.approx(token.weight, rel=1e-3, abs=1e-9), where
        sentence = words.say(f"gradient.{gradient_kind(rule, rule.parse({}), token, state['p'])}", w="NUMBER")
        assert re.fullmatch(re.escape(sentence).replace("NUMBER", ".+"), shown["said"]), where
        special = f"for.{region}.{token.effect.name.lower()}"
        if words.has(special):
            assert shown["purpose"] == words.say(special), where


def test_the_sentence_that_a_value_is_constant_stands_only_where_it_is(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer)
    constant = Words("en").say("gradient.flat")
    stopped = {(0.5, -1.0), (1.5, 1.0), (4.0, -1.0)}
    for ratio in (0.5, 0.8, 1.0, 1.2, 1.5, 4.0):
        for advantage in (1.0, -1.0):
            shown = go_to(page, rule="dual_clip", r=ratio, A=advantage, p=0.1)
            is_stopped = (ratio, advantage) in stopped or (ratio == 4.0 and advantage == 1.0)
            assert (shown["said"] == constant) == is_stopped, (ratio, advantage, shown)


def test_the_smaller_argument_of_min_is_named(explainer: Path, open_page: Any) -> None:
    page, words = open_page(explainer), Words("en")
    shown = go_to(page, rule="ppo", r=0.5, A=-1, p=0.1)
    assert shown["min"] == words.say("min.takes_clipped", a="−0.5", b="−0.8")
    assert page.locator(".arguments .taken th").inner_text() == "clip(r)·A"
    shown = go_to(page, rule="ppo", r=1.5, A=-1, p=0.1)
    assert shown["min"] == words.say("min.takes_unclipped", a="−1.5", b="−1.2")
    shown = go_to(page, rule="ppo", r=1.2, A=1, p=0.1)  # exactly on the bound
    assert shown["min"] == words.say("min.equal", a="1.2")


# --- cases and claims ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lang", "dark", "width"), [("en", False, 1280), ("zh", True, 1280), ("zh", False, 390), ("en", True, 390)]
)
def test_each_case_is_shown_with_its_token(
    explainer: Path, open_page: Any, screenshot: Any, lang: str, dark: bool, width: int
) -> None:
    page, words = open_page(explainer, lang=lang, dark=dark, width=width), Words(lang)
    assert page.locator(".case").count() == len(CASES)
    for example in RECORDED["examples"]:
        page.locator(f".case.at-{example['region']}").click()
        shown = page.evaluate(SHOWN)
        assert shown["region"] == words.region(example["region"])
        assert number(shown["weight"]) == pytest.approx(example["weight"], rel=1e-3)
        text = example["prompt"] + example["before"] + example["token"] + example["after"]
        assert page.locator(".verdict .token .text").inner_text() == text
        assert page.locator(".verdict .token mark").inner_text() == example["token"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        screenshot(page, f"explain-{example['region']}-{lang}-{'dark' if dark else 'light'}-{width}")


def test_each_claim_sets_the_page_to_show_it(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer)
    assert page.locator(".claim").count() == len(CLAIMS) >= 12
    for place, claim in enumerate(CLAIMS):
        page.locator(".claim button").nth(place).click()
        shown = page.evaluate(SHOWN)
        assert (shown["region"], float(shown["ratio"])) == (claim["region"], claim["ratio"]), claim["id"]
        assert page.locator(".controls select").input_value() == claim["rule"]


# --- the two languages -----------------------------------------------------------------------------------------------


def test_in_chinese_nothing_is_left_in_english(explainer: Path, open_page: Any) -> None:
    """All that a reader sees, for every rule; texts of the labels that are read aloud too."""
    page = open_page(explainer, lang="zh")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    for one in [None, *drawn_rules()]:
        if one is not None:
            go_to(page, rule=one["name"], r=1.0006 if one["ratio"] == "sequence" else 1.6, A=1, p=0.1)
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        texts = page.evaluate(SEEN_AND_HEARD)
        assert english_words(texts) == []


def test_the_language_can_be_switched_and_keeps_what_is_set(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer, lang="en")
    go_to(page, rule="dapo", r=1.5, A=-1, p=0.1)
    page.locator(".language").click()
    assert page.locator("h1").inner_text() == Words("zh").say("title")
    assert page.evaluate(SHOWN)["region"] == Words("zh").region("relapse")
    assert page.locator(".controls select").input_value() == "dapo"
    assert page.evaluate("document.activeElement.className") == "language"
    page.locator(".language").click()
    assert page.locator("h1").inner_text() == Words("en").say("title")


def test_the_language_asked_for_on_the_command_line_wins(tmp_path: Path, open_page: Any) -> None:
    path = tmp_path / "explain.html"
    path.write_bytes(explain_page(drawn_rules(), missing_rules(), {"rule": "cispo", "ratio": 6.0}, "zh"))
    page = open_page(path, lang="en")
    assert page.locator("h1").inner_text() == Words("zh").say("title")
    assert page.locator(".controls select").input_value() == "cispo"
    assert page.evaluate(SHOWN)["region"] == Words("zh").region("overshoot")


# --- mouse, keyboard, fields -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plot", ["value", "weight"])
def test_the_dot_is_dragged_with_the_mouse(explainer: Path, open_page: Any, plot: str) -> None:
    page = open_page(explainer)
    page.evaluate("document.querySelector('.desk').scrollIntoView({ behavior: 'instant' })")
    box = page.locator(f".plot.{plot} .handle .dot").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=4)
    between = float(page.evaluate(SHOWN)["ratio"])
    page.mouse.move(x - 150, y, steps=4)
    page.mouse.up()
    end = page.evaluate(SHOWN)
    assert 1.43 > between > float(end["ratio"]) > 0.3
    assert end["region"] == "forgotten"
    page.mouse.move(x, y)
    assert page.evaluate(SHOWN) == end, "a mouse that presses nothing moves nothing"


def test_the_dot_is_moved_with_the_keyboard(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer)
    page.locator(".plot.weight .handle").focus()
    before = float(page.evaluate(SHOWN)["ratio"])
    page.keyboard.press("ArrowRight")
    assert float(page.evaluate(SHOWN)["ratio"]) > before
    for _ in range(12):
        page.keyboard.press("Shift+ArrowLeft")
    assert page.evaluate(SHOWN)["region"] == "forgotten"
    page.keyboard.press("Home")
    assert page.evaluate(SHOWN)["ratio"] == "1"
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider", "the dot keeps the focus"
    assert "inside" in page.locator(".plot.weight .handle").get_attribute("aria-valuetext")


def test_the_tab_key_reaches_everything_and_shows_where_it_is(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer)
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    names = {f"{tag} {classes.split()[0] if classes else ''}".strip().lower() for tag, classes, _ in reached}
    assert {
        "button language",
        "button theme",
        "button case",
        "g handle",
        "select",
        "input",
        "button primary",
        "summary",
    } <= names
    assert [one for one in reached if one[0] != "BODY" and one[2] == "none"] == []


def test_a_field_takes_numbers_that_are_allowed_and_no_others(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer)
    field = page.locator(".parameter input[type=number]").first  # eps_low
    field.fill("0.5")
    assert page.evaluate("location.hash") is not None
    assert go_to(page, rule="ppo", r=0.6, A=-1, p=0.1)["region"] == "escaped"  # an address brings the rule's own values
    field.fill("0.5")
    assert page.evaluate(SHOWN)["region"] == "inside"
    field.fill("-1")
    assert field.get_attribute("aria-invalid") == "true"
    assert page.evaluate(SHOWN)["region"] == "inside", "the last good value stays"
    field.blur()
    assert (field.input_value(), field.get_attribute("aria-invalid")) == ("0.5", "false")
    page.locator(".switch input").check()  # dual_clip
    assert go_to(page, rule="ppo", r=4, A=-1, p=0.1, dual_clip=3)["region"] == "dual"


@pytest.mark.parametrize(
    "address",
    [
        "#rule=__proto__&r=1",
        "#rule=ppo&r=-1&A=x&p=7",
        "#rule=cispo&cap=-3&nonsense=1",
        "#rule=ppo&eps_low=&r=",
        "#r=1",
        "#%",
    ],
)
def test_a_senseless_address_is_no_harm(explainer: Path, open_page: Any, address: str) -> None:
    page = open_page(f"{explainer.resolve().as_uri()}{address}")
    assert page.evaluate(SHOWN)["region"] in {*CASES, "no signal"}


# --- the step --------------------------------------------------------------------------------------------------------


def test_a_gradient_of_zero_is_felt(explainer: Path, open_page: Any) -> None:
    """A stopped token keeps its ratio to the last bit, however many steps; without the rule it would have gone on."""
    page, words = open_page(explainer), Words("en")
    before = go_to(page, rule="ppo", r=1.43, A=1, p=0.2)
    page.get_by_role("button", name=words.say("step.often")).click()
    after = page.evaluate(SHOWN)
    assert after == before
    said = page.locator(".step .said").inner_text()
    assert said.startswith(words.say("step.still"))
    assert float(said.split("be ")[1].rstrip(".")) > 1.5


def test_a_step_moves_the_token_the_way_its_weight_points(explainer: Path, open_page: Any) -> None:
    page, words = open_page(explainer), Words("en")
    step = page.get_by_role("button", name=words.say("step.once"))
    for advantage, sign in ((1, 1), (-1, -1)):
        go_to(page, rule="ppo", r=1, A=advantage, p=0.2)
        step.click()
        ratio = float(page.evaluate(SHOWN)["ratio"])
        # One logit: Δ logit = η·w·(1-p), by hand with η = 0.3.
        odds = 0.25 * 2.718281828459045 ** (0.3 * sign * 0.8)
        assert ratio == pytest.approx(odds / (1 + odds) / 0.2, rel=1e-9)
    go_to(page, rule="ppo", r=1, A=1, p=0.2)
    page.get_by_role("button", name=words.say("step.often")).click()
    ratio = float(page.evaluate(SHOWN)["ratio"])
    assert 1.2 < ratio < 1.5, "beyond the bound by its last step, and then stopped: the clip does not bound r"


# --- the page --------------------------------------------------------------------------------------------------------


def test_light_and_dark_can_be_chosen(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer, dark=False)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.locator(".theme").click()
    assert page.evaluate(paper) != light
    page.locator(".theme").click()
    assert page.evaluate(paper) == light


def test_without_scripts_the_cases_are_there(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer, script=False)
    text = page.locator("body").inner_text()
    for lang in ("en", "zh"):
        assert Words(lang).say("for.overshoot.stopped") in text


@pytest.mark.parametrize("width", [390, 1024])
def test_no_rule_makes_the_page_scroll_sideways(explainer: Path, open_page: Any, width: int) -> None:
    page = open_page(explainer, width=width)
    for one in drawn_rules():
        go_to(page, rule=one["name"], r=1.0006 if one["ratio"] == "sequence" else 1.6, A=-1, p=0.1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, one["name"]


def test_the_command_for_the_terminal_is_the_state(explainer: Path, open_page: Any) -> None:
    page = open_page(explainer)
    go_to(page, rule="dapo", r=1.5, A=-1, p=0.1, eps_high=0.3, dual_clip=3)
    command = page.locator(".command").inner_text()
    expected = "dinghai explain --ratio 1.5 --advantage -1 --rule dapo --eps_high 0.3 --dual_clip 3 --probability 0.1"
    assert command == expected
