"""The live page in a real browser: it grows by itself, keeps the reader's place, says when it cannot, and runs nothing
but its own.

pytest tests/browser/test_live.py
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "view"))  # the made-up run of the tests of the views
import payloads
from served import Served
from synthetic_run import EFFECTS, REGIONS, make_run, make_step, write_step

from dinghai.files import json_line
from dinghai.trace import TraceWriter

LOST = "net::ERR_CONNECTION_REFUSED"  # what the browser's console says when the server has gone


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only, in a folder of its own."""
    return make_run(tmp_path_factory.mktemp("live") / "addition-1", steps=5, prompts=4, hostile=[])


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run of which 95 steps are still to come."""
    copy = Path(shutil.copytree(finished_run, tmp_path / "runs" / "addition-1"))
    set_config(copy, "run", "steps", 100)
    return copy


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    begun: list[Served] = []

    def start(*folders: Path, port: int = 0) -> Served:
        begun.append(Served(folders, port))
        return begun[-1]

    yield start
    for one in begun:
        one.stop()


def set_config(run: Path, table: str, key: str, value: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    config[table][key] = value
    (run / "config.json").write_text(json.dumps(config))


def grow(run: Path, step: int) -> None:
    random = np.random.default_rng(step)
    trace = TraceWriter(run / "trace", 100_000, 0, regions=REGIONS, effects=EFFECTS)
    row = write_step(trace, step, 100, make_step(random, 4, 0.5, []), random, 0.5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json_line(row))


def until(page: Any, expression: str, argument: Any = None, seconds: float = 20) -> None:
    """Wait for something to hold. (playwright's own way evaluates a string in the page, which is refused there.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, f"never came: {expression}"
        page.wait_for_timeout(50)


def wait_until_drawn(page: Any) -> None:
    """All sections are made, each for the run that is shown."""
    until(page, "document.querySelectorAll('.part:not(.drawn)').length === 0")
    page.wait_for_selector("#tokens .samples")
    page.wait_for_selector("#clip svg")


def test_it_says_what_run_it_shows_and_how_far_that_is(run: Path, serve: Any, open_page: Any) -> None:
    page = open_page(serve(run).address)
    wait_until_drawn(page)
    assert page.inner_text("h1") == "addition-1"
    assert page.inner_text("#state").startswith("running, step 5 of 100")
    assert page.title() == "addition-1 · step 5 of 100 · Dinghai"
    assert not page.is_visible("#runs")
    assert not page.is_visible("#compare")
    named = page.locator("#bar button:visible").all_inner_texts()
    assert named == [
        "Summary",
        "Curves",
        "What the rule did",
        "Where the rule acts",
        "Another ε or rule",
        "Token by token",
        "Settings",
    ]


def test_new_steps_appear_by_themselves_and_the_reader_stays_where_he_is(run: Path, serve: Any, open_page: Any) -> None:
    page = open_page(serve(run).address)
    wait_until_drawn(page)
    page.click("#bar >> text=Token by token")
    until(page, "document.querySelector('#tokens').getBoundingClientRect().top < 100")  # after some smooth scrolling
    page.wait_for_timeout(400)
    page.locator("#tokens select").first.select_option("3")
    until(page, "location.hash.includes('step=3')")
    page.locator("#tokens select").first.focus()
    place = """[document.querySelector("#tokens select").getBoundingClientRect().top, document.activeElement.tagName,
      document.querySelector("#tokens select").value]"""
    before = page.evaluate(place)
    grow(run, 6)
    until(page, "document.getElementById('state').textContent.includes('step 6 of 100')")
    until(page, "[...document.querySelector('#tokens select').options].some(one => one.value === '6')")
    after = page.evaluate(place)
    assert after[1:] == before[1:] == ["SELECT", "3"]
    assert after[0] == pytest.approx(before[0], abs=3)
    page.click("#bar >> text=Summary")
    until(page, "document.querySelector('#summary .facts').textContent.includes('of 6 steps')")


def test_a_lost_connection_is_said_and_found_again(run: Path, serve: Any, open_page: Any) -> None:
    server = serve(run)
    page = open_page(server.address, expected_errors=(LOST, "ERR_INCOMPLETE_CHUNKED_ENCODING"))
    wait_until_drawn(page)
    assert page.inner_text("#link") == "live"
    server.stop()
    until(page, "document.getElementById('link').textContent.startsWith('Connection lost, trying again in')")
    assert page.is_visible("#curves svg >> nth=0"), "what was shown stays"
    grow(run, 6)
    serve(run, port=server.port)
    until(page, "document.getElementById('link').textContent === 'live'")
    until(page, "document.getElementById('state').textContent.includes('step 6 of 100')")


def test_a_page_that_is_not_seen_listens_to_nothing_and_catches_up(run: Path, serve: Any, open_page: Any) -> None:
    """A browser gives all tabs of a server six connections; a seventh tab that listens would stop them all."""
    hide = """hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page = open_page(serve(run).address)
    wait_until_drawn(page)
    page.evaluate(hide, True)
    grow(run, 6)
    page.wait_for_timeout(2_500)
    assert "step 5 of 100" in page.inner_text("#state")
    page.evaluate(hide, False)
    until(page, "document.getElementById('state').textContent.includes('step 6 of 100')")


def test_runs_are_laid_over_each_other_and_one_is_looked_into(
    run: Path, serve: Any, open_page: Any, screenshot: Any
) -> None:
    other = Path(shutil.copytree(run, run.parent / "addition-2"))
    set_config(other, "objective", "rule", "cispo")
    page = open_page(serve(run.parent).address)
    page.wait_for_selector("#compare svg")
    wait_until_drawn(page)
    assert page.locator(".run").count() == 2
    assert page.locator(".run input:checked").count() == 2
    assert "cispo" in page.inner_text("#compare .compared >> nth=-1")
    assert "objective.rule" in page.inner_text("#compare .compared >> nth=-1")
    titles = page.locator("#compare h3").all_inner_texts()
    assert {"Reward", "Stopped", "Outside the band", "Gradient removed", "Settings that differ"} <= set(titles)
    stopped = page.locator("#compare .card", has=page.locator("h3", has_text="Stopped"))
    colours = stopped.locator("path.curve:not(.raw)").evaluate_all(
        "all => all.map(one => getComputedStyle(one).stroke)"
    )
    assert len(set(colours)) == 2
    screenshot(page, "live-compare")

    picked = page.inner_text(".run.picked button")
    page.click(f".run button:not(:text-is('{picked}'))")
    shown = {"addition-1": "addition-2", "addition-2": "addition-1"}[picked]
    until(page, "name => document.querySelector('h1').textContent === name", shown)
    assert f"run={shown}" in page.evaluate("location.hash")
    page.reload()
    until(page, "name => document.querySelector('h1').textContent === name", shown)

    page.locator(".run input").first.uncheck()
    until(page, "document.getElementById('compare').hidden")
    assert not page.is_visible("#bar >> text=Runs compared")
    page.locator(".run input").first.check()
    page.wait_for_selector("#compare svg")
    assert page.is_visible("#bar >> text=Runs compared")


def test_a_run_that_begins_appears(run: Path, serve: Any, open_page: Any) -> None:
    folder = run.parent.parent / "later"
    folder.mkdir()
    page = open_page(serve(folder).address)
    until(page, "document.getElementById('notes').textContent.includes('no run in later yet')")
    assert page.inner_text("#state").startswith("No run yet")
    young = folder / "young"
    young.mkdir()
    shutil.copy(run / "config.json", young)
    until(page, "document.querySelector('h1').textContent === 'young'")
    assert page.inner_text("#state").startswith("running, no step yet")
    shutil.copytree(run, young, dirs_exist_ok=True, ignore=shutil.ignore_patterns("metrics.jsonl"))
    shutil.copy(run / "metrics.jsonl", young)  # last, as a run writes it
    page.wait_for_selector("#curves svg")
    page.wait_for_selector("#tokens .samples")


def test_of_a_run_that_is_silent_no_more_is_said_than_is_known(run: Path, serve: Any, open_page: Any) -> None:
    then = time.time() - 1_500
    for path in [run, *run.rglob("*")]:
        os.utime(path, (then, then))
    page = open_page(serve(run).address)
    page.wait_for_selector("#curves svg")
    assert page.inner_text("#state").startswith("no new step for 25 min; step 5 of 100")


def test_a_run_that_is_removed_keeps_what_is_shown(run: Path, serve: Any, open_page: Any) -> None:
    page = open_page(serve(run).address, expected_errors=("404", "409"))
    wait_until_drawn(page)
    run.rename(run.parent.parent / "away")
    until(page, "document.getElementById('state').textContent.includes('its folder is gone')")
    page.wait_for_timeout(1_200)
    assert page.is_visible("#curves svg >> nth=0")


def test_the_theme_that_was_chosen_is_kept(run: Path, serve: Any, open_page: Any) -> None:
    page = open_page(serve(run).address)
    page.wait_for_selector("#curves svg")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click(".theme")
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark, "before anything is drawn"
    page.wait_for_selector("#curves svg")
    assert page.evaluate(paper) == dark


def test_a_token_has_an_address(run: Path, serve: Any, open_page: Any) -> None:
    address = serve(run).address
    page = open_page(address)
    wait_until_drawn(page)
    page.locator("#tokens .tokens .t").nth(3).click()
    until(page, "location.hash.includes('token=3')")
    there = page.evaluate("location.href")
    again = open_page(there)
    wait_until_drawn(again)
    until(again, "document.getElementById('tokens').getBoundingClientRect().top < innerHeight")
    assert again.evaluate("location.hash") == page.evaluate("location.hash")


def test_hostile_text_is_text(tmp_path: Path, serve: Any, open_page: Any) -> None:
    """As names of runs and as completions, in a folder that is listed."""
    for number, name in enumerate(
        ["<img src=x onerror=window.hit=1>", "'\"><script>window.hit=2<／script>", "run\u202egnp"]
    ):
        make_run(tmp_path / "runs" / name, steps=2, prompts=2, hostile=payloads.PAGE, seed=number)
    page = open_page(serve(tmp_path / "runs").address)
    page.wait_for_selector("#compare svg")
    wait_until_drawn(page)
    names = page.locator(".run button").all_inner_texts()
    assert sorted(names) == sorted(
        ["<img src=x onerror=window.hit=1>", "'\"><script>window.hit=2<／script>", "run\\u202egnp"]
    )
    assert page.evaluate("document.querySelectorAll('body img, body iframe, body object, body form').length") == 0
    for place in range(3):
        page.locator(".run button").nth(place).click()
        until(page, "name => document.querySelector('h1').textContent === name", names[place])
        page.wait_for_timeout(300)
    assert page.evaluate("document.title").startswith(names[-1])


def test_a_string_cannot_become_markup_by_any_script(run: Path, serve: Any, open_page: Any) -> None:
    """The page's policy takes the sinks away (trusted types), should a view ever reach for one."""
    page = open_page(serve(run).address, expected_errors=("requires 'TrustedHTML'", "TrustedHTML"))
    page.wait_for_selector("#curves svg")
    assert page.evaluate("try { document.body.innerHTML = '<b>'; 'taken' } catch (error) { error.name }") == "TypeError"
    page.evaluate("window.refused = []")  # that one was refused on purpose
