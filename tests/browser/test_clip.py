"""The map, the distribution of ratios and where the rule acts, in a browser: they show the census, whole and exactly.

The modules are loaded as a live page loads them, with a source that the test holds; the report is looked at as well.
"""

from __future__ import annotations

import json
import math
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dinghai.lens.regions import REGION_MEANING, REGIONS
from dinghai.view import bundle

SVG = "{http://www.w3.org/2000/svg}"
HALF = 1.22  # of the log-ratios; 61 bins, of which none ends at a bound
LOW, HIGH = math.log(0.8), math.log(1.2)

Json = dict[str, Any]

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>clip</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="style.css"><main id="clip"></main>
<script type="module">
import {{ mountClip }} from "./clip.js";
const data = {data};
window.data = data;
const asked = window.asked = [];
const source = {{
  live: true, overview: async () => data.overview, traced: async () => data.traced,
  census: async (run, step, update) => {{
    asked.push([step, update]);
    const found = data.censuses[`${{step}}/${{update}}`];
    if (!found) throw new Error("there is no such census");
    return structuredClone(found);
  }},
}};
mountClip(document.getElementById("clip"), source, "0").then(view => {{ window.view = view; }});
</script>
"""


def rule(**changed: Any) -> Json:
    """The facts of GRPO's clip."""
    places = sorted({*(i / 40 for i in range(-80, 81)), LOW, HIGH, LOW - 1e-9, HIGH + 1e-9})
    return {
        "name": "grpo",
        "title": "GRPO",
        "ratio": "token",
        "parameters": {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": None},
        "boundaries": [
            {"advantage": 1, "log_ratio": LOW, "ratio": 0.8, "below": "forgotten", "above": "inside"},
            {"advantage": 1, "log_ratio": HIGH, "ratio": 1.2, "below": "inside", "above": "overshoot"},
            {"advantage": -1, "log_ratio": LOW, "ratio": 0.8, "below": "escaped", "above": "inside"},
            {"advantage": -1, "log_ratio": HIGH, "ratio": 1.2, "below": "inside", "above": "relapse"},
        ],
        "boundaries_vary_with": None,
        "weights": {
            "log_ratio": places,
            "good": [0.0 if x > HIGH else math.exp(x) for x in places],
            "bad": [0.0 if x < LOW else math.exp(x) for x in places],
        },
        "note": None,
    } | changed


def row(tokens: int, signal: int = 0, stopped: int = 0, gradient: float = 0.0, removed: float = 0.0) -> Json:
    return {
        "tokens": tokens,
        "signal": signal,
        "stopped": stopped,
        "outside": stopped,
        "gradient": gradient,
        "removed": removed,
    }


# log-ratio, advantage, region, tokens, stopped, removed
TOKENS = [
    (0.0, 1.0, "inside", 500, 0, 0.0),
    (0.0, -1.0, "inside", 300, 0, 0.0),
    (0.0, 0.0, "no_signal", 150, 0, 0.0),
    (0.6, 1.0, "overshoot", 20, 20, 6.0),
    (-0.9, -1.0, "escaped", 12, 12, 4.0),
    (0.5, -1.0, "relapse", 10, 0, 0.0),
    (-0.4, 1.0, "forgotten", 8, 0, 0.0),
]


def census(tokens: list[tuple[float, float, str, int, int, float]] = TOKENS, **changed: Any) -> Json:
    edges = [HALF * (2 * i / 61 - 1) for i in range(62)]
    heights = [2 * (2 * i / 41 - 1) for i in range(42)]
    bins = [HALF * (2 * i / 121 - 1) for i in range(122)]
    cells = [
        [place(x, HALF, 61), place(y, 2.0, 41), REGIONS.index(name), n, stopped, removed]
        for x, y, name, n, stopped, removed in tokens
    ]
    by_region: dict[str, list[int]] = {}
    for x, _, name, n, _, _ in tokens:
        by_region.setdefault(name, [0] * 121)[place(x, HALF, 121)] += n
    count = sum(cell[3] for cell in cells)
    signal = sum(n for _, y, _, n, _, _ in tokens if y != 0)
    outside = sum(n for _, _, name, n, _, _ in tokens if name not in ("inside", "no_signal", "dropped"))
    stopped, removed = sum(cell[4] for cell in cells), sum(cell[5] for cell in cells)
    return {
        "tokens": count,
        "signal": signal,
        "stopped": stopped,
        "outside": outside,
        "gradient": 100.0,
        "removed": removed,
        "unscored": 0,
        "not_finite": 0,
        "steps": [1, 8],
        "sampled": None,
        "notes": [],
        "map": {"log_ratio_edges": edges, "advantage_edges": heights, "cells": cells},
        "ratio": {
            "edges": bins,
            "regions": by_region,
            "noise": {"sampler_median": 1e-6, "sampler_q95": 2e-6, "tokens": count},
        },
        "by_position": {
            "edges": [0, 1, 2, 3],
            "rows": [
                row(500, 400, 2, 60.0, removed * 0.1),
                row(300, 250, 25, 30.0, removed * 0.8),
                row(200, 200, 5, 10.0, removed * 0.1),
            ],
        },
        "by_probability": {
            "edges": [0, 0.1, 1],
            "rows": [row(100, 100, 30, 20.0, removed * 0.9), row(900, 750, 2, 80.0, removed * 0.1)],
        },
        "by_reward": {
            "edges": [0, 0.5, 1],
            "rows": [row(400, 300, 1, 1.0, removed * 0.25), row(600, 550, 31, 99.0, removed * 0.75)],
        },
        "by_token": [
            {"token": 7, "text": "<b>seven</b>", **row(40, 40, 20, 9.0, removed * 0.7)},
            {"token": 8, "text": "8", **row(60, 60, 12, 9.0, removed * 0.2)},
        ],
    } | changed


def place(x: float, half: float, count: int) -> int:
    return min(count - 1, max(0, math.floor((x + half) / (2 * half) * count)))


def data_of(facts: Json | None = None, **censuses: Json) -> Json:
    """What the source answers. Names of censuses: `step_update`, 0 for all."""
    named = {name.strip("_").replace("all", "null").replace("_", "/"): one for name, one in censuses.items()}
    return {
        "overview": {
            "rule": facts,
            "regions": [{"name": name, "meaning": meaning} for name, meaning in REGION_MEANING.items()],
        },
        "traced": {"steps": [{"step": step, "updates": [0, 1]} for step in (1, 8)], "notes": []},
        "censuses": {"null/null": census()} | named,
    }


class Handler(BaseHTTPRequestHandler):
    def __init__(self, page: Callable[[], str], *args: Any) -> None:
        self._page = page
        super().__init__(*args)

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        kinds = {"": "text/html", "style.css": "text/css"}
        if name == "":
            body = self._page()
        elif name == "style.css":
            body = bundle.style(["base.css", "charts.css", "clip.css"])
        else:
            body = bundle.page_file(name)
        self.send_response(200)
        self.send_header("Content-Type", kinds.get(name, "text/javascript") + "; charset=utf-8")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def show(open_page: Any) -> Iterator[Callable[..., Any]]:
    """`show(data)` opens a page that has the clip's views of it."""
    shown: Json = {}
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, lambda: PAGE.format(data=json.dumps(shown["data"]).replace("<", "\\u003c")))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def open_with(data: Json, **how: Any) -> Any:
        shown["data"] = data
        page = open_page(f"http://127.0.0.1:{server.server_port}/", **how)
        page.wait_for_function("window.view !== undefined")
        page.wait_for_timeout(50)  # figures are drawn in the next frame
        return page

    yield open_with
    server.shutdown()
    thread.join()
    server.server_close()


def card(page: Any, title: str) -> Any:
    return page.locator(".card", has=page.get_by_role("heading", name=title, exact=True))


def test_the_regions_are_counted_as_in_the_census(show: Any) -> None:
    page = show(data_of(rule()))
    rows = page.locator("table.regions tbody tr").all_inner_texts()
    cells = [re.split(r"\t", text)[:5] for text in rows]
    assert cells == [
        ["inside", "800", "80.0%", "0%", "0%"],
        ["overshoot", "20", "2.0%", "100%", "6.0%"],
        ["relapse", "10", "1.0%", "0%", "0%"],
        ["forgotten", "8", "0.8%", "0%", "0%"],
        ["escaped", "12", "1.2%", "100%", "4.0%"],
        ["no signal", "150", "15.0%", "–", "0%"],
    ]
    note = card(page, "The map").locator(".note").inner_text()
    assert "10.0% of the gradient was removed: 6.0% in overshoot, 4.0% in escaped." in note


def test_areas_bear_their_names_and_shares(show: Any) -> None:
    page = show(data_of(rule()))
    words = card(page, "The map").locator("svg text").all_text_contents()
    for expected in (
        "overshoot",
        "2.0% of the tokens",
        "all stopped",
        "6.0% of the gradient removed",
        "relapse",
        "escaped",
    ):
        assert expected in words


def boxes(path: str) -> list[tuple[float, float, float, float]]:
    """left, top, right, bottom of each rectangle of a path."""
    return [tuple(map(float, found)) for found in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)", path)]  # type: ignore[misc]


def bound_places(page: Any, title: str) -> list[float]:
    lines = (
        card(page, title)
        .locator("svg .bound:not(.faint)")
        .evaluate_all("all => all.map(line => line.getAttribute('x1'))")
    )
    return sorted({round(float(x), 1) for x in lines})


def test_bounds_are_where_the_ratio_is(show: Any) -> None:
    """In both pictures, at the places that the axis gives 0.8 and 1.2, with the names of the parameters."""
    page = show(data_of(rule()))
    for title in ("The map", "How far the ratios went from 1"):
        svg = card(page, title).locator("svg")
        ticks = dict(
            svg.locator("text[text-anchor=middle]").evaluate_all(
                "all => all.map(text => [text.textContent, Number(text.getAttribute('x'))])"
            )
        )
        assert bound_places(page, title) == [round(ticks["0.8"], 1), round(ticks["1.2"], 1)]
        words = svg.locator("text").all_text_contents()
        assert {"1−ε_low = 0.8", "1+ε_high = 1.2"} <= set(words)


def test_what_is_stopped_is_hatched_and_nothing_else(show: Any) -> None:
    page = show(data_of(rule()))
    areas = (
        card(page, "The map")
        .locator("svg .hatch:not(.over)")
        .evaluate_all("all => all.map(one => one.getAttribute('class'))")
    )
    assert sorted(areas) == ["hatch r-escaped", "hatch r-overshoot"]
    keys = card(page, "How far the ratios went from 1").locator(".keys .hatched").all_inner_texts()
    assert keys == ["overshoot", "escaped"]
    svg = card(page, "The map").locator("svg")
    lines = [
        (float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", svg.locator(".over").get_attribute("d"))
    ]
    stopped = [
        box for name in ("overshoot", "escaped") for box in boxes(svg.locator(f".cell.r-{name}").get_attribute("d"))
    ]
    for left, top, right, bottom in stopped:
        assert any(left <= x <= right and top <= y <= bottom for x, y in lines)
    for x, y in lines:
        assert any(
            left - 0.1 <= x <= right + 0.1 and top - 0.1 <= y <= bottom + 0.1 for left, top, right, bottom in stopped
        )


def test_cells_lie_in_the_area_of_their_region(show: Any) -> None:
    """A bin that a bound cuts is shared out along it."""
    cut = [(LOW + 0.002, -1.0, "inside", 5, 0, 0.0), (LOW - 0.002, -1.0, "escaped", 3, 3, 1.0)]
    page = show(data_of(rule(), all_all=census(cut)))
    svg = card(page, "The map").locator("svg")
    low, _ = bound_places(page, "The map")
    (inside,) = boxes(svg.locator(".cell.r-inside").get_attribute("d"))
    (escaped,) = boxes(svg.locator(".cell.r-escaped").get_attribute("d"))
    assert escaped[2] == pytest.approx(low, abs=0.1) == inside[0]
    assert escaped[0] < escaped[2] == inside[0] < inside[2]
    lower = svg.locator("text", has_text=re.compile("^A = 0$")).get_attribute("y")
    assert min(inside[1], escaped[1]) > float(lower)  # A < 0 lies below the strip


def test_tokens_that_the_correction_dropped_share_a_cell(show: Any) -> None:
    both = [(0.0, 1.0, "inside", 5, 0, 0.0), (0.0, 1.0, "dropped", 3, 3, 1.0)]
    page = show(data_of(rule(), all_all=census(both)))
    svg = card(page, "The map").locator("svg")
    (inside,), (dropped,) = (boxes(svg.locator(f".cell.r-{name}").get_attribute("d")) for name in ("inside", "dropped"))
    assert (inside[0], inside[2]) == (dropped[0], dropped[2])
    assert inside[1] <= dropped[1] < dropped[3] <= inside[3]
    assert dropped[3] - dropped[1] < inside[3] - inside[1]


def test_the_weight_is_zero_above_the_stopped_areas(show: Any) -> None:
    page = show(data_of(rule()))
    good, bad = (
        [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
        for path in card(page, "The map")
        .locator("svg .curve:not(.unclipped)")
        .evaluate_all("all => all.map(one => one.getAttribute('d'))")
    )
    low, high = bound_places(page, "The map")
    floor = {y for x, y in good if x > high + 0.2}
    assert len(floor) == 1
    assert all(y < min(floor) for x, y in good if x < high - 0.2)
    floor = {y for x, y in bad if x < low - 0.2}
    assert len(floor) == 1
    assert all(y < min(floor) for x, y in bad if x > low + 0.2)


def test_without_a_rule_and_with_bounds_that_vary_none_is_drawn(show: Any) -> None:
    page = show(data_of(None))
    assert "no rule.json" in card(page, "The map").locator(".note").inner_text()
    assert page.locator(".bound").count() == 0
    vary = rule(title="DCPO", boundaries=[], boundaries_vary_with="probability", weights=None)
    page = show(data_of(vary))
    assert "each token has bounds of its own, by its probability" in card(page, "The map").locator(".note").inner_text()
    assert page.locator(".bound").count() == 0
    assert card(page, "The map").locator(".cell").count() > 5


def test_the_arrow_keys_read_the_map(show: Any) -> None:
    """From the cell with most tokens to the next one with any, in each direction; Escape ends it."""
    page = show(data_of(rule()))
    tip = card(page, "The map").locator(".tip")
    for _ in range(4):
        page.keyboard.press("Tab")
        if tip.is_visible():
            break
    assert re.search(r"inside\s+500 tokens", tip.inner_text())
    page.keyboard.press("ArrowDown")
    assert "A = 0" in tip.inner_text()
    assert re.search(r"no signal\s+150 tokens", tip.inner_text())
    page.keyboard.press("ArrowDown")
    assert re.search(r"inside\s+300 tokens", tip.inner_text())
    page.keyboard.press("ArrowLeft")
    assert re.search(r"escaped\s+12 tokens\s+of them stopped\s+12\s+gradient removed\s+4.0% of all", tip.inner_text())
    assert "r 0.39 to 0.41" in tip.inner_text()
    page.keyboard.press("ArrowLeft")  # nothing further
    assert "escaped" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_pointer_reads_the_cell_under_it(show: Any) -> None:
    page = show(data_of(rule()))
    svg = card(page, "The map").locator("svg")
    (left, top, right, bottom), *_ = boxes(svg.locator(".cell.r-overshoot").get_attribute("d"))
    svg.hover(position={"x": (left + right) / 2, "y": (top + bottom) / 2})
    tip = card(page, "The map").locator(".tip")
    assert re.search(r"overshoot\s+20 tokens", tip.inner_text())
    assert svg.locator(".chosencell").get_attribute("visibility") == "visible"


def test_the_columns_are_read_by_keyboard_and_add_up(show: Any) -> None:
    page = show(data_of(rule()))
    ratios = card(page, "How far the ratios went from 1")
    ratios.locator("svg").focus()
    page.keyboard.press("Home")
    texts = ratios.evaluate("""card => Array.from({ length: 121 }, () => {
      const said = card.querySelector(".tip").innerText;
      card.querySelector("svg").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      return said;
    })""")
    total = sum(int(re.findall(r"([\d,]+) tokens", text)[0].replace(",", "")) for text in texts)
    assert len(set(texts)) == 121
    assert total == 1_000


def heights(page: Any) -> list[float]:
    path = card(page, "How far the ratios went from 1").locator("svg .column.r-overshoot").get_attribute("d")
    return [bottom - top for _, top, _, bottom in boxes(path)]


def test_the_scale_can_be_linear(show: Any) -> None:
    page = show(data_of(rule()))
    before = heights(page)
    page.get_by_label("linear scale").check()
    after = heights(page)
    assert after[0] < before[0] / 4  # 20 tokens of 950 in the highest column
    page.get_by_label("linear scale").uncheck()
    assert heights(page) == before


SAID = [
    (rule(), {}, "5.9% of the tokens with a signal lie outside the band."),
    (rule(), {}, "The nearest bound is 91k times as far away."),
    (rule(), {"noise": (0.1, 0.3)}, "The bounds lie within that noise"),
    (rule(), {"noise": (0.01, 0.05)}, "That is 27.4% of the way to the nearest bound."),
    (rule(ratio="sequence"), {"noise": (0.1, 0.3)}, "their mean over a sequence, which differs by less"),
    (rule(ratio="sequence-product"), {}, "in which these add up"),
    (rule(), {"noise": None}, "the noise of a log-prob is not known"),
    (rule(boundaries=[], title="SAPO"), {}, "SAPO has no bounds on the ratio."),
    (rule(), {"tokens": [(0.05, 1.0, "inside", 50, 0, 0.0)]}, "No token comes even half way to a bound"),
    (rule(), {"tokens": [(0.15, 1.0, "inside", 50, 0, 0.0)]}, "No token lies outside the band."),
    (rule(), {"tokens": [(9.0, 1.0, "overshoot", 50, 50, 1.0)]}, "100% of the tokens lie beyond the picture"),
]


def test_what_the_distribution_shows_is_said(show: Any) -> None:
    page = show(data_of(rule()))
    for facts, changed, said in SAID:
        found = census(changed.get("tokens", TOKENS))
        if "noise" in changed:
            noise = changed["noise"]
            found["ratio"]["noise"] = noise and {"sampler_median": noise[0], "sampler_q95": noise[1], "tokens": 9}
        sentences = page.evaluate(
            "async ([found, rule]) => (await import('/clip_ratio.js')).ratioSentences(found, rule, null)",
            [found, facts],
        )
        assert said in " ".join(sentences)


def test_tokens_that_were_never_scored_are_counted_and_have_no_ratio(show: Any) -> None:
    """An update in which none was scored has a map and a distribution without a token."""
    nothing = census([]) | {"tokens": 640, "signal": 0, "unscored": 640, "gradient": 0.0, "removed": 0.0}
    nothing["ratio"]["noise"] = None
    some = census(unscored=90)
    data = data_of(rule(), all_all=some, **{"8_all": nothing})
    data["overview"]["settings"] = [["update.shortcuts.old_log_probs", '"engine"']]
    page = show(data)
    coverage, note = page.locator(".clip > .lead").last, card(page, "How far the ratios went from 1").locator(".note")
    assert "90 were never scored, since all advantages of their completion are 0" in coverage.inner_text()
    assert "of the tokens that were scored have a ratio" in note.inner_text()
    assert "noise between two evaluations is not known" in note.inner_text()
    assert page.locator(".regions tr", has_text="no signal").locator("td").first.inner_text() == "240"
    page.get_by_label("tokens of").select_option("step 8")
    note.get_by_text("No token here was scored, so there is no ratio to show.").wait_for()
    assert "640 were never scored" in coverage.inner_text()
    assert "NaN" not in page.inner_text("main")


def test_with_one_update_a_batch_the_page_says_that_no_bound_can_act(show: Any) -> None:
    at_one = census([(0.0, 1.0, "inside", 500, 0, 0.0), (0.0, 0.0, "no_signal", 500, 0, 0.0)])
    data = data_of(rule(), all_all=at_one)
    for step in data["traced"]["steps"]:
        step["updates"] = [0]
    page = show(data)
    note = card(page, "How far the ratios went from 1").locator(".note").inner_text()
    assert "Each batch got a single update" in note
    assert "every ratio is 1 and no bound on the ratio can act" in note
    assert "No gradient was removed." in card(page, "The map").locator(".note").inner_text()
    assert not page.get_by_label("update").is_visible()


def test_the_first_update_is_told_from_a_single_one(show: Any) -> None:
    at_one = census([(0.0, 1.0, "inside", 500, 0, 0.0)])
    page = show(data_of(rule(), **{"8_0": at_one}))
    page.get_by_label("tokens of").select_option("step 8")
    page.get_by_label("update").select_option("update 1")
    note = card(page, "How far the ratios went from 1").locator(".note")
    note.get_by_text("This is the first update on each batch").wait_for()


def test_a_step_and_an_update_can_be_picked(show: Any) -> None:
    one = census([(0.6, 1.0, "overshoot", 7, 7, 6.0)], steps=[8, 8])
    page = show(data_of(rule(), **{"8_all": one, "8_1": one}))
    page.get_by_label("tokens of").select_option("step 8")
    page.get_by_text("Step 8: 7 tokens").wait_for()
    page.get_by_label("update").select_option("update 2")
    page.wait_for_function("asked.length === 3")
    assert page.evaluate("asked") == [[None, None], [8, None], [8, 1]]
    assert page.locator("table.regions tbody tr").count() == 1
    page.get_by_label("update").select_option("update 1")  # a census that the source does not have
    page.get_by_text("there is no such census").wait_for()
    assert not card(page, "The map").is_visible()
    page.get_by_label("update").select_option("update 2")
    card(page, "The map").wait_for()


def test_an_answer_that_comes_late_does_not_replace_a_newer_choice(show: Any) -> None:
    first, second = census(steps=[1, 1]), census(steps=[8, 8])
    page = show(data_of(rule(), **{"1_all": first, "8_all": second}))
    page.evaluate("""() => {
      const slow = data.censuses["1/null"];
      Object.defineProperty(data.censuses, "1/null", { get() { return slow; } });
      const clone = window.structuredClone;
      window.structuredClone = value => value.steps[0] === 1 && value.steps[1] === 1
        ? new Promise(resolve => setTimeout(() => resolve(clone(value)), 300)) : clone(value);
    }""")
    page.get_by_label("tokens of").select_option("step 1")
    page.get_by_label("tokens of").select_option("step 8")
    page.get_by_text("Step 8:").wait_for()
    page.wait_for_timeout(400)
    assert page.get_by_text("Step 8:").is_visible()


def test_a_refresh_keeps_the_readers_place(show: Any) -> None:
    """Choice, focus, cell and scroll stay, and the numbers are the new ones."""
    page = show(data_of(rule(), **{"8_all": census(steps=[8, 8])}), height=500)
    page.get_by_label("tokens of").select_option("step 8")
    page.get_by_text("Step 8: 1,000 tokens").wait_for()
    card(page, "The map").locator("svg").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    tip = card(page, "The map").locator(".tip")
    scrolled = page.evaluate("scrollY")
    page.evaluate("""async () => {
      data.censuses["8/null"].map.cells.forEach(cell => { cell[3] *= 2; });
      data.censuses["8/null"].tokens *= 2;
      data.traced.steps.push({ step: 9, updates: [0, 1] });
      await view.refresh();
    }""")
    page.get_by_text("Step 8: 2,000 tokens").wait_for()
    assert page.get_by_label("tokens of").input_value() == "8"
    assert page.get_by_label("tokens of").locator("option").count() == 4
    assert page.evaluate("document.activeElement.tagName") == "svg"
    assert page.evaluate("scrollY") == scrolled
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()


def test_where_it_clips_is_said_in_a_sentence(show: Any) -> None:
    page = show(data_of(rule()))
    assert card(page, "By position in the completion").locator(".note").inner_text() == (
        "80.0% of the removed gradient is at position 1: 30.0% of all tokens."
    )
    assert card(page, "By probability of the token").locator(".note").inner_text() == (
        "90.0% of the removed gradient is on tokens whose probability was 0 to 0.1: 10.0% of all tokens."
    )
    assert "mean reward of 0.5 to 1: 60.0% of all tokens" in (
        card(page, "By reward of the prompt's completions").locator(".note").inner_text()
    )
    lane = card(page, "By position in the completion")
    lane.locator("svg").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert re.search(
        r"position 1\s+tokens\s+300\s+with a signal\s+250\s+of these stopped\s+25, 10.0%\s+"
        r"outside the band\s+25, 10.0%\s+"
        r"of their gradient removed\s+26.7%\s+of all removed gradient\s+80.0%",
        lane.locator(".tip").inner_text(),
    )


def test_the_run_of_rows_that_is_named_is_the_one_with_fewest_tokens(show: Any) -> None:
    page = show(data_of(rule()))
    wide = [row(90, removed=3.0), row(90, removed=3.0), row(2, removed=0.0), row(10, removed=6.0), row(8, removed=0.0)]
    half = "async rows => (await import('/clip_where.js')).halfOfRemoved(rows)"
    assert page.evaluate(half, wide) == {"first": 3, "last": 3, "removed": 6.0, "tokens": 10}
    spread = [row(10, removed=1.0), row(5, removed=2.0), row(5, removed=2.0), row(10, removed=1.0)]
    assert page.evaluate(half, spread) == {"first": 1, "last": 2, "removed": 4.0, "tokens": 10}
    assert page.evaluate(half, [row(5), row(5)]) is None


def test_columns_are_as_high_as_their_share(show: Any) -> None:
    """Of the tokens with a signal 10 % are stopped at position 1, 0.5 % before it and 2.5 % after it."""
    page = show(data_of(rule()))
    path = card(page, "By position in the completion").locator("svg .column.k0").get_attribute("d")
    heights = [float(floor) - float(top) for floor, top in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", path)]
    assert heights == pytest.approx([62 / 20, 62, 62 / 4], abs=0.06)


def test_text_of_a_model_stays_text(show: Any) -> None:
    page = show(data_of(rule()))
    tokens = card(page, "By token")
    assert tokens.locator("tbody th").all_inner_texts() == ["<b>seven</b>", "8"]
    assert (
        tokens.locator(".note").inner_text()
        == "70.0% of the removed gradient is on one token of the vocabulary: “<b>seven</b>”."
    )
    assert page.locator("#clip b").count() == page.locator("#clip .tip b").count()


def test_a_rule_that_took_nothing_away_says_so(show: Any) -> None:
    unmoved = {"by_position": {"edges": [0, 1], "rows": [row(500, 500, 0, 9.0)]}}
    page = show(data_of(rule(), all_all=census([(0.0, 1.0, "inside", 500, 0, 0.0)], by_token=[], **unmoved)))
    for title in ("By token", "By position in the completion"):
        assert card(page, title).locator(".note").inner_text() == "The rule took no gradient away here."
    assert (
        "share of all removed gradient: none"
        in card(page, "By position in the completion").locator("svg text").all_text_contents()
    )


FIGURES = {
    "The map": ["overshoot", "1−ε_low = 0.8", "ratio r = π_new / π_old"],
    "How far the ratios went from 1": ["1+ε_high = 1.2", "escaped", "10"],
    "By position in the completion": ["position, counted from 0"],
    "By probability of the token": ["share of all removed gradient"],
    "By reward of the prompt's completions": ["share of the tokens"],
}


def test_each_figure_can_be_saved(show: Any) -> None:
    page = show(data_of(rule()), dark=True)
    for title, words in FIGURES.items():
        figure = card(page, title)
        figure.hover()
        with page.expect_download() as download:
            figure.get_by_role("button", name="Save this figure as an SVG file").click()
        root = ElementTree.parse(download.value.path()).getroot()
        text = ElementTree.tostring(root, encoding="unicode")
        assert "var(--" not in text
        assert "color-mix" not in text
        written = [element.text for element in root.iter(f"{SVG}text")]
        assert set(words) <= set(written)
        assert sum(1 for element in root.iter(f"{SVG}path")) >= 3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_shows_them_without_a_fault(report: Any, open_page: Any, width: int, dark: bool) -> None:
    page = open_page(report, width=width, dark=dark)
    page.locator("#clip svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for svg in page.locator("#clip svg").all():
        box = svg.bounding_box()
        assert box["width"] > 200
        assert box["x"] + box["width"] <= width


def test_a_full_map_is_drawn_at_once(show: Any) -> None:
    """Every cell taken, by three regions each: as crowded as a census can be."""
    crowd = [
        [ix, iy, REGIONS.index(name), 1 + ix * iy, 0, 0.1]
        for ix in range(61) for iy in range(41) for name in ("inside", "overshoot", "dropped")
    ]  # fmt: skip
    page = show(data_of(rule()))
    taken = page.evaluate(
        """async cells => {
          data.censuses["null/null"].map.cells = cells;
          const begun = performance.now();
          await view.refresh();
          document.body.getBoundingClientRect();
          return performance.now() - begun;
        }""",
        crowd,
    )
    assert taken < 1_500  # 80 ms on one core
    assert card(page, "The map").locator("svg *").count() < 250
