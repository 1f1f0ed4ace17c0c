"""Opens a report full of hostile text in headless Chromium: nothing may run, nothing may be asked for, all must show.

Not part of the tests, which need no browser:  python tests/view/browser_check.py [CHROMIUM]
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import payloads
from synthetic_run import make_run

from dinghai.view.report import write_report
from dinghai.view.terminal import safe

OWN_ELEMENTS = {"script": 2, "style": 1}
FOREIGN = {"img", "iframe", "object", "embed", "link", "form", "input", "base", "a", "math", "template", "body/onload"}


def main() -> None:
    chromium = sys.argv[1] if len(sys.argv) > 1 else "chromium"
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "<img src=x onerror=window.hit=1>", steps=3, prompts=4, hostile=payloads.PAGE)
        # Every token of the page is a payload, so the whole corpus is on it.
        report = write_report(run, token_text=lambda token: payloads.ALL[token % len(payloads.ALL)])
        dom, log, requests = browse(chromium, report, Path(folder) / "net.json")
    check(dom, log, requests)
    print(f"{len(payloads.ALL)} payloads on the page: none ran, nothing was asked for")


def browse(chromium: str, page: Path, net_log: Path) -> tuple[str, str, str]:
    """The page's elements after its script ran, what the browser's console said, and its network log."""
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--window-size=1280,2400", "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom"),
        *(f"--log-net-log={net_log}", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr, net_log.read_text(errors="replace")


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def check(dom: str, log: str, requests: str) -> None:
    elements = Elements(dom)
    assert not FOREIGN & set(elements.count), FOREIGN & set(elements.count)
    assert not elements.handlers, elements.handlers
    for tag, count in OWN_ELEMENTS.items():
        assert elements.count[tag] == count, tag
    assert elements.count["svg"] >= 8, "the script did not draw"
    said = [line for line in log.splitlines() if "CONSOLE" in line]
    assert not said, said
    assert "evil.example" not in requests
    # What stands between the tags, the embedded data left out: the tokens as a reader sees them.
    without_data = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    shown = html.unescape(re.sub(r"<[^>]*>", "", without_data))
    tokens = {payloads.ALL[i % len(payloads.ALL)] for i in range(256)}
    missing = [payload for payload in tokens if safe(payload) not in shown]
    print(f"{len(tokens) - len(missing)} of {len(tokens)} payloads are among the tokens first shown")


if __name__ == "__main__":
    main()
