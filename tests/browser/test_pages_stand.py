"""Report pages in a real browser: nothing fails, nothing is asked for, nothing is wider than the screen.

pytest tests/browser
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_opens_without_a_fault(
    report: Path, open_page: Any, screenshot: Any, width: int, dark: bool
) -> None:
    page = open_page(report, width=width, dark=dark)
    page.wait_for_selector("svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    screenshot(page, f"report-{width}-{'dark' if dark else 'light'}")
