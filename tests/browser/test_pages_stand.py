"""What holds for every page, the report, the live page and the explainer: nothing fails, nothing is wider than the
screen, every control has a name and is reached by keyboard, text can be read, and what cannot be shown is said.

pytest tests/browser/test_pages_stand.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "view"))  # the made-up run and the server of the tests of views
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # a run of a million tokens a step
from served import Served
from synthetic_run import make_run

from dinghai.files import json_line
from dinghai.view.report import write_report

EXPLAINER = Path(__file__).parents[2] / "docs" / "explain.html"
PAGES = ["report", "live", "explainer"]
SECONDS_TO_OPEN = 5  # five times what benchmarks/browse_page.py holds it to, on a machine that does other things too
CONTRAST = 4.5  # WCAG AA for text
TABS_AT_MOST = 400
LOOKS = (Path(__file__).parent / "looks.js").read_text()


def ask(page: Any, question: str, *given: float) -> Any:
    """What a function of looks.js says of the page."""
    return page.evaluate(f"{LOOKS.strip()}.{question}({', '.join(map(str, given))})")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only; step 2 is damaged, step 5 was never finished, and some of its metrics are not finite."""
    folder = make_run(tmp_path_factory.mktemp("stand") / "addition-1", steps=5, prompts=4, hostile=[])
    damaged = folder / "trace" / "step-000002" / "update-001.rank0.parquet"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    (folder / "trace" / "step-000005" / "complete.json").unlink()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[3]["loss"] = rows[3]["entropy"] = math.nan
    rows[5]["grad_norm"] = rows[5]["reward/mean"] = math.inf
    (folder / "metrics.jsonl").write_text("".join(json_line(row) for row in rows))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    served = Served([run])
    yield served.address
    served.stop()


@pytest.fixture
def open_drawn(run: Path, address: str, open_page: Any) -> Any:
    """`open_drawn(name, …)` opens one of PAGES and waits until all of it is drawn."""

    def open_one(name: str, **wishes: Any) -> Any:
        page = open_page({"report": run / "report.html", "live": address, "explainer": EXPLAINER}[name], **wishes)
        page.wait_for_selector("svg")
        if name != "explainer":
            page.wait_for_selector("#tokens .tokens .t")
            page.wait_for_selector("#settings table, #settings dl", state="attached")
        if name == "live":  # which replays a run when the reader comes near
            page.locator("#replay").scroll_into_view_if_needed()
            page.wait_for_selector("#replay .rp-about, #replay .notes:not(.rp-stale)")
            page.evaluate("scrollTo(0, 0)")
        return page

    return open_one


# --- what is seen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_it_fits_its_screen_and_its_text_can_be_read(
    open_drawn: Any, screenshot: Any, name: str, width: int, dark: bool
) -> None:
    page = open_drawn(name, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert ask(page, "cutOff") == []
    assert ask(page, "pale", CONTRAST) == []
    screenshot(page, f"{name}-{width}-{'dark' if dark else 'light'}")


@pytest.mark.parametrize("name", PAGES)
def test_who_wants_no_motion_has_none(open_drawn: Any, name: str) -> None:
    page = open_drawn(name)
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    page.wait_for_selector("svg")
    assert ask(page, "moving") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_bars_of_a_column_are_of_one_scale(open_drawn: Any, width: int) -> None:
    """A figure that is longer than others takes nothing from the bar beside it."""
    page = open_drawn("report", width=width)
    lengths = page.evaluate("""[...document.querySelectorAll("#clip .tokentable tbody tr")].map(row =>
      [...row.querySelectorAll(".track")].map(track => Math.round(track.getBoundingClientRect().width)))""")
    assert len({len(text) for text in page.locator("#clip .barcell .number").all_inner_texts()}) > 2
    assert all(len(set(column)) == 1 and column[0] > 10 for column in zip(*lengths, strict=True))


# --- who uses it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_everything_has_a_name(open_drawn: Any, name: str) -> None:
    page = open_drawn(name)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title().endswith("Dinghai") or page.title().startswith("Dinghai")
    assert ask(page, "nameless") == []
    assert ask(page, "idsGivenTwice") == []
    levels = ask(page, "headings")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert ask(page, "unnamedPictures") == []


@pytest.mark.parametrize("name", PAGES)
def test_the_tab_key_reaches_everything_and_the_focus_is_seen(open_drawn: Any, name: str) -> None:
    page = open_drawn(name)
    reached: dict[str, Any] = {}
    for _ in range(TABS_AT_MOST):
        page.keyboard.press("Tab")
        focused = ask(page, "focused")
        if focused is None or focused["number"] in reached:
            break
        reached[focused["number"]] = focused
    else:
        pytest.fail(f"the end of the page is more than {TABS_AT_MOST} presses away")
    assert len(reached) > 10
    assert [one["what"] for one in reached.values() if not one["isSeen"]] == [], "the focus went where it is not seen"
    assert ask(page, "unreached") == []
    page.evaluate("document.activeElement.blur()")
    without = ask(page, "looks")
    same = [one["what"] for number, one in reached.items() if without.get(number) == one["look"]]
    assert same == [], "nothing shows that these have the focus"


def test_without_scripts_the_verdict_and_a_note_are_there(run: Path, address: str, open_page: Any) -> None:
    page = open_page(run / "report.html", script=False)
    assert "over 5 steps" in page.inner_text("body") or "5 of 5" in page.inner_text("body")
    assert "need JavaScript" in page.inner_text("body")
    assert "JavaScript" in open_page(address, script=False).inner_text("body")
    assert "overshoot" in open_page(EXPLAINER, script=False).inner_text("body").lower()


# --- what cannot be shown --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report", "live"])
def test_a_damaged_and_an_unfinished_step_are_told_and_not_shown(run: Path, open_drawn: Any, name: str) -> None:
    page = open_drawn(
        name, expected_errors=("404", "500")
    )  # the browser's own word on the step that the server refuses
    text = page.inner_text("body")
    assert "update-001.rank0.parquet" in text
    assert "step 5 is not shown: it was not finished" in text
    steps = page.locator("#tokens select").first
    listed = steps.locator("option").all_inner_texts()
    assert "5" not in listed
    assert "2" not in listed
    if name == "live":  # and one that is damaged while it is looked at
        before, file = page.text_content("#tokens .samples"), run / "trace" / "step-000003" / "update-000.rank0.parquet"
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        steps.select_option("3")
        page.wait_for_selector("#tokens .notes >> text=Step 3 cannot be shown")
        file.write_bytes(content)
        assert page.text_content("#tokens .samples") == before


@pytest.mark.parametrize("name", ["report", "live"])
def test_what_is_not_finite_is_shown_as_itself(open_drawn: Any, name: str) -> None:
    page = open_drawn(name)
    curves = page.inner_text("#curves")
    assert "× marks what is not finite" in curves
    assert "∞" in curves or "inf" in curves.lower()
    assert page.locator("#curves path[d*=NaN], #curves path[d*=Infinity]").count() == 0


def test_a_step_of_a_million_tokens_opens_in_a_small_page(tmp_path: Path, open_page: Any) -> None:
    import browse
    import browse_page  # needs playwright, without which this test is skipped

    served = Served([browse.make_run(tmp_path / "million", 1, 2)])
    try:
        page = open_page(served.address)
        _, size = page.evaluate(browse_page.FIRST)
        assert size <= browse.FIRST_KILOBYTES * 1000
        page.wait_for_selector("#settings.drawn")
        assert page.evaluate(browse_page.CHOOSE, [1, ["#clip", "#tokens"]]) <= SECONDS_TO_OPEN * 1000
        assert page.inner_text("#clip .pickers + .lead").startswith("Step 1: 1,000,000 tokens")
    finally:
        served.stop()
