"""Nothing that a token can be is without a look of its own, and the view's modules fit into one page.

What the view does is tested in a real browser: test_tokens_in_browser.py and test_token_words.py in tests/browser.
"""

from __future__ import annotations

import re

import pytest

from dinghai.lens.completions import NUMBERS, NUMBERS_OF_SOME_RUNS
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.view import bundle

STYLE = bundle.style(["base.css", "tokens.css"])
QUIET_EFFECTS = {"kept", "none"}


@pytest.mark.parametrize("region", [*REGIONS, "unknown"])
def test_every_region_has_a_colour(region: str) -> None:
    assert re.search(rf"\.r-{region}\b[^{{}}]*{{[^}}]*--key:", STYLE)


@pytest.mark.parametrize("region", [name for name in REGIONS if name != "masked"])
def test_every_region_has_a_line_to_compare_with(region: str) -> None:
    assert re.search(rf"\.o-{region}\b[^{{}}]*{{[^}}]*--other:", STYLE)


@pytest.mark.parametrize("effect", [name for name in EFFECTS if name not in QUIET_EFFECTS])
def test_every_effect_that_changes_a_gradient_has_a_mark(effect: str) -> None:
    assert re.search(rf"\.t\.e-{effect}\b", STYLE)


def test_every_step_of_the_scales_has_a_colour() -> None:
    for step in [*(f"s{i}" for i in range(5)), *(f"d{i}" for i in range(7))]:
        assert re.search(rf"\.{step} {{ --key: var\(--(seq|div){step[1]}\)", STYLE), step


def test_every_number_of_the_data_is_read_by_the_page() -> None:
    source = bundle.page_file("token_facts.js")
    listed = re.search(r"^const NUMBERS = \[(.*)\];$", source, re.MULTILINE)
    assert listed
    assert set(re.findall(r'"(\w+)"', listed[1])) == {*NUMBERS, *NUMBERS_OF_SOME_RUNS, "ratio"}


def test_the_view_is_one_script_that_sets_no_style_by_attribute() -> None:
    script = bundle.script("tokens.js")
    assert "mountTokens" in script
    assert "innerHTML" not in script
    assert 'setAttribute("style"' not in script
