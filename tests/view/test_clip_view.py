"""The modules and the style of the clip's pictures fit together, and keep to themselves.

What they show is tested in a browser: tests/browser/test_clip.py.
"""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from dinghai.lens.regions import REGIONS
from dinghai.view import bundle

MODULES = ("clip.js", "clip_axis.js", "clip_map.js", "clip_ratio.js", "clip_where.js")
SHARED = {"card", "curve", "keys", "pickers", "r-inside", "r-no_signal"}  # that the pages' other sheets style as well


def classes(sheet: str) -> set[str]:
    """The classes that a style sheet's selectors name."""
    selectors = re.sub(r"\{[^{}]*\}", "{}", bundle.page_file(sheet))
    return set(re.findall(r"\.([a-zA-Z][\w-]*)", selectors))


def test_they_are_one_script() -> None:
    script = bundle.script("clip.js")
    for name in ("mountClip", "drawMap", "drawRatios", "drawLanes"):
        assert script.count(f"function {name}(") == 1


def test_no_rule_of_the_style_is_left_over() -> None:
    source = "".join(bundle.page_file(name) for name in MODULES)
    generated = {f"r-{name}" for name in REGIONS} | {f"n{level}" for level in range(6)}
    unused = [name for name in classes("clip.css") - SHARED - generated if not re.search(rf"\b{name}\b", source)]
    assert unused == []


def test_each_level_of_density_has_an_opacity() -> None:
    """As many as the map draws: a cell without one would look like the densest."""
    levels = re.search(r"^const LEVELS = (\d+);", bundle.page_file("clip_map.js"), re.MULTILINE)
    assert levels
    assert {f"n{level}" for level in range(int(levels[1]))} <= classes("clip.css")


def sheets() -> list[str]:
    """The others of report and live page; the explainer has none of these pictures."""
    folder = files("dinghai.view") / "page"
    own = {"clip.css", "explain.css"}
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".css") and path.name not in own)


@pytest.mark.parametrize("sheet", sheets())
def test_its_style_meets_no_other_by_chance(sheet: str) -> None:
    assert classes("clip.css") & classes(sheet) <= SHARED
