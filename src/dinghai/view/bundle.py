"""Puts the pages' ES modules into one script, so that a page is one file and the live page can load the same modules.

There is no build step and no parser: the modules keep to a few rules, and a module that breaks one is named. A module
imports by lines of the form `import { a, b } from "./other.js";`, exports with `export` at the start of a line before
a function or constant, and declares no name at its top level that another module of the page declares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files as package_files

from dinghai.view.palette import palette_css

_IMPORT = re.compile(r'^import \{ ([\w$]+(?:, [\w$]+)*) \} from "\./([\w-]+\.js)";$')
_DECLARED = re.compile(r"^(?:export )?(?:async )?(?:function\*?|const|let|class) ([\w$]+)", re.MULTILINE)
_EXPORTED = re.compile(r"^export (?:async )?(?:function\*?|const|class) ([\w$]+)", re.MULTILINE)


class BundleError(Exception):
    """A module of the package breaks the rules above: a mistake in the program, not in its use."""


def script(entry: str) -> str:
    """The module `entry` and all that it imports as one classic script, each module once and after what it imports.

    Raises:
        BundleError: a module breaks a rule, imports a name that is not exported, or imports itself by a detour.
    """
    ordered: dict[str, str] = {}
    _collect(entry, ordered, ())
    _check_names(ordered)
    body = "\n".join(_without_module_words(source) for source in ordered.values())
    return f'(() => {{\n"use strict";\n{body}\n}})();\n'


def style(names: Sequence[str]) -> str:
    """The palette and the style sheets, one after another."""
    return "\n".join([palette_css(), *(page_file(name) for name in names)])


def page_file(name: str) -> str:
    """The text of a file of `view/page/`."""
    return (package_files("dinghai.view") / "page" / name).read_text("utf-8")


def imported(name: str, source: str) -> dict[str, list[str]]:
    """Module -> the names that `source` takes from it.

    Raises:
        BundleError: an import or export is not written as the rules ask.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(source.splitlines(), start=1):
        if re.match(r"\s*import\b(?!\()", line):
            match = _IMPORT.match(line)
            if not match:
                raise BundleError(f'{name}, line {number}: write `import {{ a, b }} from "./other.js";` in one line')
            found.setdefault(match[2], []).extend(match[1].split(", "))
        elif re.match(r"\s*export\b", line) and not _EXPORTED.match(line):
            raise BundleError(f"{name}, line {number}: `export` stands before a function, const or class, unindented")
    return found


def _collect(name: str, ordered: dict[str, str], path: tuple[str, ...]) -> None:
    """Add a module after those it imports."""
    if name in path:
        raise BundleError(f"{' -> '.join([*path, name])}: modules import each other in a circle")
    if name in ordered:
        return
    source = page_file(name)
    for other, names in imported(name, source).items():
        _collect(other, ordered, (*path, name))
        missing = set(names) - set(_EXPORTED.findall(ordered[other]))
        if missing:
            raise BundleError(f"{name} imports {', '.join(sorted(missing))}, which {other} does not export")
    ordered[name] = source


def _check_names(modules: dict[str, str]) -> None:
    owner: dict[str, str] = {}
    for module, source in modules.items():
        for name in _DECLARED.findall(source):
            if name in owner:
                raise BundleError(f"{owner[name]} and {module} both declare {name} at their top level")
            owner[name] = module


def _without_module_words(source: str) -> str:
    lines = [line for line in source.splitlines() if not line.startswith("import ")]
    return "\n".join(line.removeprefix("export ") for line in lines)
