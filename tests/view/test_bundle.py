"""The page's modules become one script without a build step; a module that breaks the rules for that is named."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from dinghai.view import bundle
from dinghai.view.bundle import BundleError

MODULES = {
    "page.js": 'import { a } from "./a.js";\nimport { b } from "./b.js";\na(b);\n',
    "a.js": 'import { b } from "./b.js";\nexport function a() {\n  return b;\n}\n',
    "b.js": "const hidden = 1;\nexport const b = hidden;\n",
}


def bundled(monkeypatch: pytest.MonkeyPatch, **changed: str) -> str:
    """The script of `page.js`, with some of the modules above written otherwise."""
    modules = MODULES | {f"{name}.js": source for name, source in changed.items()}
    monkeypatch.setattr(bundle, "page_file", modules.__getitem__)
    return bundle.script("page.js")


def test_each_module_comes_once_and_after_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    script = bundled(monkeypatch)
    assert script.count("const b = hidden;") == 1
    assert script.index("const b") < script.index("function a") < script.index("a(b);")


def test_nothing_is_left_that_only_a_module_may_say(monkeypatch: pytest.MonkeyPatch) -> None:
    script = bundled(monkeypatch)
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert script.startswith('(() => {\n"use strict";')


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"a": 'import {b} from "./b.js";\n'}, r"a\.js, line 1: write `import"),
        ({"a": 'import { b as c } from "./b.js";\n'}, r"a\.js, line 1: write `import"),
        ({"a": 'import b from "./b.js";\n'}, r"a\.js, line 1: write `import"),
        ({"a": 'import * as b from "./b.js";\n'}, r"a\.js, line 1: write `import"),
        ({"a": 'import {\n  b,\n} from "./b.js";\n'}, r"a\.js, line 1: write `import"),
        ({"a": 'import { b } from "https://cdn.example/b.js";\n'}, r"a\.js, line 1: write `import"),
        ({"b": "export default 1;\n"}, r"b\.js, line 1: `export` stands before"),
        ({"b": "const b = 1;\nexport { b };\n"}, r"b\.js, line 2: `export` stands before"),
        ({"b": "export let b = 1;\n"}, r"b\.js, line 1: `export` stands before"),
        ({"b": "const b = 1;\n"}, r"a\.js imports b, which b\.js does not export"),
        ({"b": "export const b = 1;\nfunction a() {}\n"}, r"b\.js and a\.js both declare a at their top level"),
        (
            {"b": 'import { a } from "./a.js";\nexport const b = a;\n'},
            r"page\.js -> a\.js -> b\.js -> a\.js: modules import",
        ),
    ],
)
def test_a_module_that_breaks_a_rule_is_named(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        bundled(monkeypatch, **changed)


def test_words_within_a_function_are_no_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name at the top of two modules clashes; within functions it may be used at will."""
    script = bundled(monkeypatch, b="export const b = 1;\nfunction inner() {\n  const a = 2;\n  return a;\n}\n")
    assert "const a = 2;" in script


def test_every_module_of_the_pages_keeps_the_rules() -> None:
    for path in (files("dinghai.view") / "page").iterdir():
        if path.name.endswith(".js"):
            bundle.imported(path.name, path.read_text("utf-8"))


def test_the_style_begins_with_the_palette() -> None:
    style = bundle.style(["base.css", "charts.css"])
    assert style.index("--overshoot:") < style.index("box-sizing") < style.index(".card")
