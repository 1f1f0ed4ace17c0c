"""The replay and the findings in a real browser: the answer of a slider is that of the sums, a rule's disagreement
opens its token, the tokens that meet another fate are marked, a finding leads to its evidence.

Run: pytest tests/browser/test_replay_in_browser.py
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "view"))  # the made-up run and the server of the tests of views
from served import Served
from synthetic_run import EFFECTS, REGIONS, make_run, make_step, read_data, write_step

from dinghai.files import json_line
from dinghai.trace import TraceWriter
from dinghai.view import bundle
from dinghai.view.palette import palette_css
from dinghai.view.report import embedded_json

# Shows one view over the data of the page.
ENTRY = """
import { mountReplay } from "./replay.js";
import { replayChoice } from "./replay_choice.js";

const held = JSON.parse(document.getElementById("data").textContent);
const source = {
  live: false, replayed: replayChoice(),
  replay: async () => held.replay, traced: async () => ({ steps: [{ step: 1 }] }), holds: async () => false,
};
mountReplay(document.getElementById("replay"), source, "0");
"""


@pytest.fixture(scope="module")
def data(report: Path) -> dict[str, Any]:
    return read_data(report.read_text())


def total(page: dict[str, Any], vectors: list[list[float]]) -> dict[str, float]:
    return {key: math.fsum(vector[place] for vector in vectors) for place, key in enumerate(page["keys"])}


def at(page: dict[str, Any], low: int, high: int) -> dict[str, float]:
    grid = page["grid"]
    return total(page, [*(one[low] for one in grid["low_sums"]), *(one[high] for one in grid["high_sums"])])


def tiles(page: Any) -> dict[str, str]:
    """Name -> figure, without what is said of it."""
    found: dict[str, str] = page.evaluate("""Object.fromEntries([...document.querySelectorAll(".rp-facts > div")].map(
      one => [one.querySelector("dt").textContent, one.querySelector("dd").firstChild.textContent]))""")
    return found


def assert_answers(page: Any, sums: dict[str, float], own: dict[str, float]) -> None:
    """The tiles say what the sums do."""
    shown = tiles(page)
    share = [sums["stopped"] / sums["signal"], sums["removed"] / sums["gradient"]]
    for name, value in zip(["Tokens stopped", "Gradient removed"], share, strict=True):
        assert math.isclose(float(shown[name].rstrip("%")) / 100, value, abs_tol=6e-4), name
    cosine = sums["dot"] / math.sqrt(sums["norm"] * own["norm"])
    assert math.isclose(float(shown["Direction, cosine"]), cosine, abs_tol=6e-4)
    assert int(shown["Tokens that differ"].replace(",", "")) == sums["differ"]


def until(page: Any, expression: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"never came: {expression}"
        page.wait_for_timeout(50)


# --- the sliders ---


def test_the_answer_of_the_sliders_is_that_of_the_sums(report: Path, data: dict[str, Any], open_page: Any) -> None:
    replay = data["replay"]
    own, (low, high) = total(replay, replay["own_sums"]), replay["grid"]["own"]
    page = open_page(report)
    page.wait_for_selector(".rp-facts")
    assert tiles(page)["Tokens that differ"] == "0"
    assert page.locator(".rp-marks .rp-back").is_disabled()
    page.focus("#replay input[type=range] >> nth=1")
    page.keyboard.press("ArrowRight")
    assert_answers(page, at(replay, low, high + 1), own)
    page.keyboard.press("End")
    page.focus("#replay input[type=range] >> nth=0")
    page.keyboard.press("Home")
    assert_answers(page, at(replay, 0, len(replay["grid"]["high"]) - 1), own)
    page.fill("#replay input[type=number] >> nth=0", str(replay["grid"]["low"][2] * 1.01))
    page.keyboard.press("Tab")
    assert float(page.input_value("#replay input[type=number] >> nth=0")) == replay["grid"]["low"][2]  # never between
    assert_answers(page, at(replay, 2, len(replay["grid"]["high"]) - 1), own)
    mark = next(one for one in replay["grid"]["marks"] if one["name"] == "DAPO")
    page.click(".rp-mark >> text=DAPO")
    places = replay["grid"]["low"].index(mark["low"]), replay["grid"]["high"].index(mark["high"])
    assert_answers(page, at(replay, *places), own)
    assert page.get_attribute(".rp-mark:has-text('DAPO')", "aria-pressed") == "true"
    until(page, "document.querySelector('#replay [role=status]').textContent.startsWith('With ε_low')")
    page.click(".rp-marks .rp-back")
    assert tiles(page)["Tokens that differ"] == "0"
    assert f"{replay['reproduced']['equal']:,} of {replay['reproduced']['tokens']:,}" in page.inner_text(".rp-about")


def test_bounds_that_act_together_and_rules_without_any(data: dict[str, Any], open_page: Any, tmp_path: Path) -> None:
    """Every pair was replayed then; and where there is no pair of bounds, there are rules alone."""
    replay = json.loads(json.dumps(data["replay"]))
    grid = replay["grid"]
    lows, highs = [0, grid["own"][0]], [grid["own"][1], len(grid["high"]) - 1]
    both = [
        [[[a + b for a, b in zip(below[i], above[j], strict=True)] for j in highs] for i in lows]
        for below, above in zip(grid.pop("low_sums"), grid.pop("high_sums"), strict=True)
    ]
    grid |= {"both": both, "separable": False, "own": [1, 0], "marks": []}
    grid |= {"low": [grid["low"][i] for i in lows], "high": [grid["high"][j] for j in highs]}
    page = open_page(as_page(tmp_path / "both.html", replay))
    page.wait_for_selector(".rp-facts")
    assert tiles(page)["Tokens that differ"] == "0"
    page.focus("#replay input[type=range] >> nth=1")
    page.keyboard.press("End")
    assert_answers(page, total(replay, [one[1][1] for one in both]), total(replay, replay["own_sums"]))
    alone = open_page(as_page(tmp_path / "rules.html", replay | {"grid": None}))
    alone.wait_for_selector(".rp-facts")
    assert alone.locator("#replay input:visible").count() == 0
    first = replay["rules"][0]
    assert_answers(alone, total(replay, first["sums"]), total(replay, replay["own_sums"]))


def as_page(path: Path, replay: dict[str, Any]) -> Path:
    bundle_of = bundle.page_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "page_file", lambda name: ENTRY if name == "entry.js" else bundle_of(name))
        script = bundle.script("entry.js")
    styles = "".join(bundle.page_file(name) for name in ("base.css", "charts.css", "replay.css"))
    path.write_text(
        f"<!doctype html><meta charset=utf-8><style>{palette_css()}{styles}</style><div id=replay></div>"
        f'<script type="application/json" id="data">{embedded_json({"replay": replay})}</script>'
        f"<script>{script}</script>"
    )
    return path


# --- two rules, and their tokens ---


def test_another_rule_and_the_token_on_which_it_differs(
    report: Path, data: dict[str, Any], open_page: Any, screenshot: Any
) -> None:
    replay = data["replay"]
    rule = next(one for one in replay["rules"] if one["key"] == "importance_sampling")
    held = [one for one in rule["disagree"] if f"{one['step']}/{one['group']}" in data["groups"]]
    page = open_page(report)
    page.wait_for_selector("#tokens .t")
    assert not page.is_visible("#tokens label:has-text('decisions')")
    page.select_option("#replay select", rule["key"])
    assert_answers(page, total(replay, rule["sums"]), total(replay, replay["own_sums"]))
    page.wait_for_selector(".rp-list a")
    assert page.locator(".rp-list a").count() == len(held)
    page.click(".rp-list a >> nth=0")
    first = held[0]
    until(page, f"document.querySelector('.tk-where')?.textContent.includes('completion {first['sample']}')")
    assert f"token {first['position'] + 1} of" in page.inner_text(".tk-where")
    assert f"update {first['update'] + 1}" in page.inner_text("#tokens .stepper output")
    assert page.locator("#tk-chosen").is_visible()
    until(page, "document.querySelector('.tk-replayed') !== null")
    assert "Replayed with importance_sampling: kept" in page.inner_text(".tk-replayed")
    assert "in the run it was stopped" in page.inner_text(".tk-replayed")
    rows = data["replay_groups"][f"{first['step']}/{first['group']}/{first['update']}"]["rules"][rule["key"]]
    assert page.locator("#tokens .tokens .x-freed").count() == sum(len(places) for _, _, places in rows)
    assert "Next different" in page.inner_text("#tokens .pickers")
    screenshot(page, "replayed-tokens")
    page.select_option("#tokens label:has-text('decisions') select", "run")
    assert page.locator("#tokens .x-freed").count() == 0
    page.click(".rp-list a >> nth=0")  # asked for once more
    until(page, "document.querySelectorAll('#tokens .x-freed').length > 0")


def test_tokens_are_marked_by_the_bounds_that_are_chosen(report: Path, data: dict[str, Any], open_page: Any) -> None:
    """At each place of the sliders those whose fate is another than the run's, and no others."""
    replay, page = data["replay"], open_page(report)
    page.wait_for_selector("#tokens .t")
    low, high = len(replay["grid"]["low"]) - 1, replay["grid"]["own"][1] - 3
    page.focus("#replay input[type=range] >> nth=0")
    page.keyboard.press("End")
    page.focus("#replay input[type=range] >> nth=1")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.click("text=Token by token: see which they are")
    until(page, "document.querySelectorAll('#tokens [class*=\"x-\"]').length > 0")
    key = page.input_value("#tokens select >> nth=0")
    group = page.locator(".tk-prompts tr.chosen").evaluate("row => [...row.parentNode.children].indexOf(row)")
    shown = data["groups"][f"{key}/{data['heads'][key][group]['group']}"]
    update = int(page.evaluate("document.querySelector('#tokens input[type=range]').value"))
    recorded = [
        data["overview"]["effects"][effect]["name"] == "stopped"
        for sample in shown["samples"]
        if str(update) in sample["updates"]
        for effect in spread(sample["updates"][str(update)]["effect"], len(sample["text"]))
    ]
    rows = data["replay_groups"][f"{key}/{shown['group']}/{update}"]["grid"]
    stops = {n: (low if side < 0 else high) < kept_from for side, kept_from, places in rows for n in places}
    differ = [(recorded[n], stop) for n, stop in stops.items() if recorded[n] != stop]
    assert page.locator("#tokens .tokens .x-freed").count() == sum(before for before, _ in differ)
    assert page.locator("#tokens .tokens .x-caught").count() == sum(stop for _, stop in differ)
    assert differ


def spread(column: Any, count: int) -> list[Any]:
    return column if isinstance(column, list) else [column] * count


# --- the doctor's findings ---


def test_a_finding_leads_to_its_evidence(report: Path, data: dict[str, Any], open_page: Any) -> None:
    page, findings = open_page(report), data["overview"]["findings"]
    page.wait_for_selector("#tokens .t")
    assert page.locator(".finding .grade").all_inner_texts() == [
        f"{'✕' if one['grade'] == 'invalid' else '▲' if one['grade'] == 'harmful' else '◆'}{one['grade']}"
        for one in findings
    ]
    assert page.evaluate("[...document.querySelectorAll('.finding')].map(one => one.open)")[:2] == [True, False]
    said = page.inner_text(".verdict")
    assert not any(one["sentence"] in said for one in findings)
    number, place = next(
        (n, evidence["place"])
        for n, one in enumerate(findings)
        for evidence in one["evidence"]
        if "position" in evidence["place"]
    )
    finding = page.locator(".finding").nth(number)
    finding.evaluate("one => { one.open = true; }")
    finding.locator("li a").first.click()
    until(page, f"document.querySelector('.tk-where')?.textContent.includes('completion {place['sample']}')")
    assert f"token {place['position'] + 1} of" in page.inner_text(".tk-where")
    assert page.evaluate("document.activeElement.classList.contains('tokens')")
    finding.locator("dd > a").click()
    until(page, "document.querySelector('#tokens').getBoundingClientRect().top < 120")


# --- on every screen ---


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_it_fits_its_screen_and_its_text_can_be_read(
    report: Path, open_page: Any, screenshot: Any, width: int, dark: bool
) -> None:
    page = open_page(report, width=width, dark=dark)
    page.wait_for_selector("#tokens .t")
    for finding in page.locator(".finding:not([open]) summary").all():
        finding.click()
    page.click(".rp-mark >> text=DAPO")
    page.click("text=Token by token: see which they are")
    page.wait_for_selector("#tokens .x-freed")
    looks = (Path(__file__).parent / "looks.js").read_text().strip()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(f"{looks}.cutOff()") == []
    assert page.evaluate(f"{looks}.pale(4.5)") == []
    assert page.evaluate(f"{looks}.nameless()") == []
    screenshot(page, f"replay-{width}-{'dark' if dark else 'light'}")


# --- the live page ---


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "addition-1", steps=2, prompts=4, hostile=[])
    config = json.loads((run / "config.json").read_text())
    config["run"]["steps"] = 100
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture
def address(growing: Path) -> Iterator[str]:
    served = Served([growing])
    yield served.address
    served.stop()


def test_the_live_page_replays_when_the_reader_comes_near_and_wants_it(
    growing: Path, address: str, open_page: Any
) -> None:
    page = open_page(address)
    page.wait_for_selector("#tokens .t", state="attached")
    asked = "performance.getEntriesByType('resource').filter(one => /api.runs.*replay$/.test(one.name)).length"
    assert page.evaluate(asked) == 0
    page.click("#bar >> text=Another ε or rule")
    page.wait_for_selector(".rp-facts")
    assert page.evaluate(asked) == 1
    page.select_option("#replay select", "importance_sampling")
    page.wait_for_selector(".rp-list a")
    page.click(".rp-list a >> nth=0")
    until(page, "document.querySelectorAll('#tokens .x-freed').length > 0")
    until(page, "location.hash.includes('token=')")
    assert page.locator("#tk-chosen").is_visible()
    assert not page.is_visible(".rp-stale")
    grow(growing, 3)
    page.locator(".rp-about").scroll_into_view_if_needed()
    page.wait_for_selector(".rp-stale >> visible=true")
    assert page.evaluate(asked) == 1  # it costs a second, and the reader is at what is shown
    page.click("text=Replay the steps since")
    page.wait_for_selector(".rp-about >> text=steps 1 to 3")
    assert page.evaluate(asked) == 2
    assert not page.is_visible(".rp-stale")


def grow(run: Path, step: int) -> None:
    """One more step, as the training loop leaves it: the trace first, then the line of metrics."""
    random = np.random.default_rng(step)
    trace = TraceWriter(run / "trace", 100_000, 0, regions=REGIONS, effects=EFFECTS)
    row = write_step(trace, step, 100, make_step(random, 4, 0.5, []), random, 0.5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json_line(row))
