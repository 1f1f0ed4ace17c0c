"""Proves that a step of a million tokens is shown at once in the live page: in a real browser, from the choice of the
step until its map and its completions are painted.

    python benchmarks/browse_page.py [--folder FOLDER]

The runs are those of `browse.py`. Each step is chosen once, so that neither server nor page knows it. Exits with status
1 if a figure misses its bar. The machine should be idle; playwright and Chromium are needed, as for the tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from browse import FIRST_KILOBYTES, SECONDS_TO_OPEN, Table, busy, make_run, watching

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    raise SystemExit("playwright is not installed: `make test` brings it") from None

STEPS = 22  # the newest is shown by the page of itself, and the first is chosen to warm up
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
PLACES = {"map": "#clip", "tokens": "#tokens"}  # what a step is chosen in

# Chooses a step in the views that are named and waits until all of them show it and the browser has painted; gives ms.
# The tokens' view says its step in the address once its completions are in the page, the map's view in its first words.
CHOOSE = """([step, places]) => new Promise(resolve => {
  const shows = {
    "#tokens": () => new URLSearchParams(location.hash.slice(1)).get("step") === String(step),
    "#clip": () => document.querySelector("#clip .pickers + .lead").textContent.startsWith(`Step ${step}:`),
  };
  const begun = performance.now();
  for (const place of places) {
    const select = document.querySelector(`${place} select`);
    select.value = String(step);
    select.dispatchEvent(new Event("change", { bubbles: true }));
  }
  const look = () => {
    if (!places.every(place => shows[place]())) { setTimeout(look, 2); return; }
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun)));
  };
  look();
})"""
# Until the verdict is painted: milliseconds since the address was asked for, and the bytes that came.
FIRST = """() => new Promise(resolve => {
  const look = () => {
    if (!document.querySelector("#summary .verdict p")) { setTimeout(look, 2); return; }
    requestAnimationFrame(() => setTimeout(() => resolve([performance.now(), ["navigation", "resource"]
      .flatMap(kind => performance.getEntriesByType(kind)).reduce((sum, one) => sum + one.transferSize, 0)])));
  };
  look();
})"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs are made, and left; by default a temporary folder")
    folder = parser.parse_args().folder
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        raise SystemExit("no Chromium was found: install one, or set CHROMIUM to its path")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox())
        table = Table()
        for name, updates in {"4 updates of 250,000": 4, "1 update of 1,000,000": 1}.items():
            run = (folder or Path(temporary)) / f"{name} in {STEPS} steps"
            if not run.exists():
                make_run(run, updates, STEPS)
            with watching(run) as (_, port):
                measure(browser.new_page(), f"http://127.0.0.1:{port}/", name, table)
        browser.close()
    print(busy())
    return 0 if table.held else 1


def sandbox() -> list[str]:
    """As root, as in a container, Chromium has no sandbox of its own."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []


def measure(page: Any, address: str, name: str, table: Table) -> None:
    """Rows for the run at the address: its first page, then steps in the two views together and in each alone."""
    page.goto(address)
    milliseconds, size = page.evaluate(FIRST)
    table.row(f"{name} tokens a step: first page, until its verdict is painted", milliseconds / 1000, "s")
    table.row("… its bytes, as they came", size / 1000, "kB", FIRST_KILOBYTES)
    page.wait_for_selector("#clip svg")
    page.wait_for_selector("#tokens .samples .t")
    page.wait_for_selector("#settings.drawn")
    page.evaluate(CHOOSE, [1, list(PLACES.values())])
    steps = iter(range(2, STEPS))  # the last one is shown already
    for what, places in {
        "map and tokens": list(PLACES.values()),
        **{one: [at] for one, at in PLACES.items()},
    }.items():
        seconds = [page.evaluate(CHOOSE, [next(steps), places]) / 1000 for _ in range((STEPS - 2) // 3)]
        table.row(
            f"… a step chosen in {what}, until painted, median of {len(seconds)}", statistics.median(seconds), "s"
        )
        table.row("… the slowest", max(seconds), "s", SECONDS_TO_OPEN)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
