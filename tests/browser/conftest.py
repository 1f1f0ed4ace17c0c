"""A real browser for the tests in this folder: Debian's Chromium, driven by playwright.

`open_page` opens a file or an address and watches it: an error, a dialog, a violation of the page's policy or a request
for anything but the page's own origin fails the test. Without a browser these tests are skipped, in CI they fail.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
MEND = "install one (Debian: apt-get install chromium), or set CHROMIUM to its path"

# Runs before any script of the page: what a payload would set off, and what the page's policy refused.
TRAPS = """
window.refused = [];
document.addEventListener(
  "securitypolicyviolation", e => window.refused.push(`${e.violatedDirective}: ${e.blockedURI}`));
for (const name of ["alert", "confirm", "prompt", "print"]) window[name] = () => { window.hit = name; };
"""


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; where there is none the test is skipped, and in CI it fails."""
    found = find_chromium()
    if found is None:
        message = f"no Chromium was found: {MEND}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


# One for each file of tests: while it runs, so does playwright's event loop, and no other test could start its own.
@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make test` brings it")
    # As root, as in a container, Chromium has no sandbox of its own.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@dataclass
class Watched:
    """What a page did. `allowed` are the origins it may ask ("file://" for a file)."""

    allowed: set[str]
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def foreign(self) -> list[str]:
        return [url for url in self.requests if _origin(url) not in self.allowed]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


class PageOpener:
    """Opens pages, each in a context of its own, and checks at the end that none misbehaved."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._opened: list[tuple[Any, Any, Watched]] = []

    def __call__(
        self,
        where: Path | str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        lang: str = "en",
        script: bool = True,
        expected_errors: tuple[str, ...] = (),
    ) -> Any:
        """A playwright page.

        Args:
            where: a file, or an http address of the test's own server.
            script: False: as a reader who runs none.
            expected_errors: parts of console messages that the test provokes on purpose.
        """
        url = where.resolve().as_uri() if isinstance(where, Path) else where
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            locale={"en": "en-GB", "zh": "zh-CN"}[lang],
            java_script_enabled=script,
            accept_downloads=True,
        )
        context.set_default_timeout(60_000)  # what waits longer never comes; a busy machine may take some
        context.add_init_script(TRAPS)
        page = context.new_page()
        watched = Watched({_origin(url), "data://", "blob://"})
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("pageerror", lambda error: watched.errors.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (watched.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: self._console(watched, message, expected_errors))
        self._opened.append((context, page, watched))
        page.goto(url)
        return page

    @staticmethod
    def _console(watched: Watched, message: Any, expected: tuple[str, ...]) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in expected):
            watched.errors.append(f"console {message.type}: {message.text}")

    def watched(self, page: Any) -> Watched:
        return next(watched for _, opened, watched in self._opened if opened is page)

    def check(self) -> None:
        """Nothing ran that a payload brought, nothing was refused, nothing failed, nothing foreign was asked for."""
        for _, page, watched in self._opened:
            if not page.is_closed():
                assert page.evaluate("window.hit") is None, "a payload ran"
                assert page.evaluate("window.refused || []") == []
            assert watched.errors == []
            assert watched.foreign() == []

    def close(self) -> None:
        for context, _, _ in self._opened:
            context.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[PageOpener]:
    """`open_page(path_or_url, width=…, dark=…)` gives a playwright page; see `PageOpener`."""
    opener = PageOpener(browser)
    try:
        yield opener
        opener.check()
    finally:
        opener.close()


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Any:
    """`screenshot(page, name)` keeps a picture in the folder $DINGHAI_SCREENSHOTS, where that is set."""

    def take(page: Any, name: str) -> None:
        folder = os.environ.get("DINGHAI_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    return take


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a made-up run whose completions are hostile. Read-only."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "view"))  # the made-up run of the tests of the views
    from synthetic_run import make_run

    from dinghai.view.report import write_report

    return write_report(make_run(tmp_path_factory.mktemp("browser") / "addition-3", steps=6))
