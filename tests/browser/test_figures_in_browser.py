"""The report's figures in a browser: read by pointer and by keyboard, saved as files that stand alone, losing nothing.

The reports here are of runs with metrics alone, so they open at once.
"""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from dinghai.view.palette import DARK, LIGHT
from dinghai.view.report import write_report

SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The report of a run of which there are metrics and nothing else."""
    folder.mkdir()
    lines = [json.dumps({"step": step, **row}) + "\n" for step, row in enumerate(rows, start=1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return write_report(folder)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Ten steps; the entropy of the fifth is not finite."""
    rows: list[dict[str, Any]] = [
        {
            "reward/mean": step / 10,
            "entropy": "NaN" if step == 5 else 1 / step,
            "clip/stopped_fraction": 0.01 * step,
            "clip/band_fraction": 0.02 * step,
            "clip/gradient_removed/total": 0.3,
            "clip/gradient_removed/escaped": 0.2,
            "clip/gradient_removed/overshoot": 0.1,
        }
        for step in range(1, 11)
    ]
    return write_run(tmp_path / "small", rows)


def card(page: Any, title: str) -> Any:
    """The figure with this title, once it is drawn."""
    one = page.locator(".card", has=page.get_by_role("heading", name=re.compile(f"^{re.escape(title)}")))
    one.locator("svg").wait_for()
    return one


def save(page: Any, title: str) -> ElementTree.Element:
    """The file that the figure's button gives."""
    one = card(page, title)
    one.hover()
    with page.expect_download() as download:
        one.get_by_role("button", name="Save this figure as an SVG file").click()
    assert download.value.suggested_filename.endswith(".svg")
    return ElementTree.parse(download.value.path()).getroot()


def path_ys(path: str) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.-]+ ([\d.-]+)", path)]


def test_the_arrow_keys_read_a_curve(open_page: Any, small: Path) -> None:
    page = open_page(small)
    reward = card(page, "Reward")
    reward.locator("svg").focus()
    page.keyboard.press("Home")
    tip = reward.locator(".tip")
    assert tip.inner_text().split() == ["step", "1", "reward", "0.1"]
    page.keyboard.press("ArrowRight")
    assert "step 2" in tip.inner_text()
    page.keyboard.press("End")
    assert tip.inner_text().split() == ["step", "10", "reward", "1"]
    assert reward.locator(".cross").get_attribute("visibility") == "visible"
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_pointer_reads_all_series_of_a_chart(open_page: Any, small: Path) -> None:
    page = open_page(small)
    stopped = card(page, "Stopped, and outside the band")
    stopped.locator("svg").hover()
    text = stopped.locator(".tip").inner_text()
    assert re.search(r"stopped\s+\d+\.\d%", text)
    assert re.search(r"outside the band\s+\d+\.\d%", text)
    page.mouse.move(0, 0)
    assert not stopped.locator(".tip").is_visible()


def test_a_tip_over_areas_adds_them_up(open_page: Any, small: Path) -> None:
    page = open_page(small)
    removed = card(page, "Gradient removed by region")
    removed.locator("svg").focus()
    page.keyboard.press("End")
    assert re.search(r"together\s+30\.0%", removed.locator(".tip").inner_text())


def test_what_is_not_finite_is_marked_and_breaks_the_curve(open_page: Any, small: Path) -> None:
    page = open_page(small)
    entropy = card(page, "Entropy")
    assert entropy.locator("svg .lost").count() == 1
    assert entropy.locator("svg .curve").count() == 2
    entropy.locator("svg").focus()
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert entropy.locator(".tip").inner_text().split() == ["step", "5", "entropy", "NaN"]


def test_areas_end_where_a_share_is_not_finite(open_page: Any, tmp_path: Path) -> None:
    """Not a slope down to zero, which would be a measurement."""
    rows = [{"clip/gradient_removed/total": 0.2, "clip/gradient_removed/escaped": 0.2} for _ in range(9)]
    rows[4]["clip/gradient_removed/escaped"] = "NaN"  # type: ignore[assignment]
    page = open_page(write_run(tmp_path / "torn", rows))
    removed = card(page, "Gradient removed by region")
    assert removed.locator("svg .area").count() == 2
    assert removed.locator("svg .lost").count() == 1
    assert len({round(y) for y in path_ys(removed.locator("svg .area").first.get_attribute("d"))}) == 2


def test_a_view_that_fails_takes_no_other_with_it(open_page: Any, report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text("utf-8").replace('"by_probability":', '"by_nothing":'), "utf-8")
    page = open_page(broken, expected_errors=("TypeError",))
    assert page.locator("#clip").get_by_text("This part of the page could not be shown").is_visible()
    for shown in ("#curves .card", "#regions .card", "#tokens .t", "#settings table"):
        assert page.locator(shown).first.is_visible()


def test_a_saved_figure_stands_alone_in_light_colours(open_page: Any, small: Path) -> None:
    """Whatever the page's theme: it goes into a paper. Nothing in it needs the page's styles."""
    page = open_page(small, dark=True)
    root = save(page, "Stopped, and outside the band")
    text = ElementTree.tostring(root, encoding="unicode")
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == "Stopped, and outside the band"
    assert "var(--" not in text
    assert "color-mix" not in text
    used = set(re.findall(r"#[0-9a-f]{6}", text))
    assert {LIGHT["c0"], LIGHT["c1"]} <= used
    assert not {DARK["c0"], DARK["c1"], DARK["paper"]} & used
    for element in root.iter():
        assert not {"class", "style", "tabindex", "role", "href"} & set(element.attrib)
    words = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "outside the band 20.0%" in words
    assert "gradient exactly zero" in words
    dashed = [path.get("stroke-dasharray") for path in root.iter(f"{SVG}path")]
    assert dashed.count("5px, 3px") == 2  # the curve, and its sample in the key
    assert page.evaluate("document.documentElement.dataset.theme") is None  # the page itself stays dark


def test_a_saved_figure_has_what_the_page_draws(open_page: Any, small: Path) -> None:
    page = open_page(small)
    drawn = card(page, "Reward").locator("svg .curve").get_attribute("d")
    assert drawn in [path.get("d") for path in save(page, "Reward").iter(f"{SVG}path")]


@pytest.mark.parametrize("width", [390, 1280])
def test_long_curves_lose_no_spike_and_stay_drawable(open_page: Any, tmp_path: Path, width: int) -> None:
    rows = [{"entropy": 0.5 + 0.1 * math.sin(step * 1.7), "grad_norm_mean": 1.0} for step in range(20_000)]
    rows[13_337]["grad_norm_mean"] = 50.0
    page = open_page(write_run(tmp_path / "long", rows), width=width)
    norm = card(page, "Gradient norm")
    band = norm.locator("svg .band").get_attribute("d")
    zero = max(path_ys(band))
    assert min(path_ys(band)) < 0.15 * zero, "the spike is not drawn"
    assert len(path_ys(band)) < 1_000
    norm.locator("svg").focus()
    page.keyboard.press("Home")
    assert "steps 1 to 50" in norm.locator(".tip").inner_text()


def test_a_noisy_curve_has_its_running_mean_and_every_step(open_page: Any, tmp_path: Path) -> None:
    rows = [{"reward/mean": 0.5 + 0.3 * (-1) ** step, "entropy": step / 60} for step in range(60)]
    page = open_page(write_run(tmp_path / "noisy", rows))
    reward = card(page, "Reward")
    raw, mean = (path_ys(reward.locator(f"svg .curve{which}").get_attribute("d")) for which in (".raw", ":not(.raw)"))
    assert len(raw) == len(mean) == 60
    assert max(raw) - min(raw) > 3 * (max(mean) - min(mean))
    assert card(page, "Entropy").locator("svg .raw").count() == 0  # smooth as it is
    reward.locator("svg").focus()
    page.keyboard.press("End")
    assert "running mean" in reward.locator(".tip").inner_text()


def test_light_and_dark_can_be_chosen(open_page: Any, small: Path) -> None:
    page = open_page(small, dark=True)
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Show the page in light colours").click()
    light = page.evaluate(background)
    assert light != dark
    page.get_by_role("button", name="Show the page in dark colours").click()
    assert page.evaluate(background) == dark


def test_the_bar_leads_to_the_sections(open_page: Any, small: Path) -> None:
    page = open_page(small, height=500)
    bar = page.get_by_role("navigation", name="Sections")
    assert bar.get_by_role("button").all_inner_texts() == ["Summary", "Curves", "What the rule did", "Settings"]
    bar.get_by_role("button", name="What the rule did").click()
    bar.locator(".here", has_text="What the rule did").wait_for()  # while it scrolls there
    assert page.evaluate("scrollY") > 0
    assert bar.is_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_a_run_with_nothing_but_settings_has_a_page(open_page: Any, tmp_path: Path, dark: bool) -> None:
    folder = tmp_path / "dead"
    folder.mkdir()
    (folder / "config.json").write_text('{"run": {"steps": 5}}')
    page = open_page(write_report(folder), dark=dark)
    assert page.get_by_text("No training step was recorded.").is_visible()
    assert page.get_by_role("row", name="steps 5").is_visible()
    assert page.get_by_role("navigation").get_by_role("button").all_inner_texts() == ["Summary", "Settings"]


def test_on_paper_the_page_is_light(open_page: Any, small: Path, tmp_path: Path) -> None:
    page = open_page(small)
    page.get_by_role("button", name="Show the page in dark colours").click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
