"""`dinghai explain`: what a rule does to one token, with numbers in the terminal, or as a page to play with."""

from __future__ import annotations

import math
import os
import tempfile
import webbrowser
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinghai.catalogue.explain_rules import drawn_rules, missing_rules, ratio_kind
from dinghai.catalogue.explain_token import print_heading, print_token, uses_probability
from dinghai.catalogue.weights import PROBABILITY
from dinghai.errors import InputError
from dinghai.objective import Rule, find_rule
from dinghai.trace.files import write_atomically
from dinghai.view.explain import CASES, Words, explain_page

BOTH_SIGNS = (1.0, -1.0)
DEFAULT_RULE = "ppo"


def explain(
    *,
    ratio: float | None,
    advantage: float | None,
    rule: str,
    given: Mapping[str, float | None],
    probability: float | None = None,
    language: str | None = None,
    page: Path | None = None,
    open_browser: bool = False,
) -> None:
    """Prints the explanation of one token, or of both signs of A; writes or opens the page where that is asked for.

    Args:
        ratio: r, above 0; None: no token is explained.
        given: parameters of the rule; those not given take its defaults.
        probability: π_old of the token, between 0 and 1; None: 0.05, or less where r·π_old would exceed ½.
        language: "en" or "zh"; None: that of the system, on the page that of the browser.

    Raises:
        InputError: a number is out of range, there is no such rule or parameter, or the page cannot draw the rule.
        RunFailed: the page cannot be written.
    """
    found = find_rule(rule)
    parameters = found.parse(given)
    p_old = _checked(found, ratio, advantage, probability)
    words = Words(language or system_language())
    console = Console(highlight=False)
    if ratio is not None:
        print_heading(console, found, parameters, words)
        for sign in BOTH_SIGNS if advantage is None else (advantage,):
            console.print()
            print_token(console, found, parameters, ratio, sign, p_old, words)
    if page is not None or open_browser:
        asked = {"ratio": ratio, "advantage": advantage, "p_old": probability, "parameters": dict(given)}
        start = {"rule": rule, **{name: value for name, value in asked.items() if value not in (None, {})}}
        written = _write_page(_page(found, start, language), page)
        console.print(Text(str(written)), soft_wrap=True)
        if open_browser and not webbrowser.open(written.resolve().as_uri()):
            console.print(Text(words.say("print.no_browser")))
    elif ratio is None:
        _print_introduction(console, words)


def system_language() -> str:
    """The language that the system's environment asks for: "zh" or "en"."""
    variables = (os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANGUAGE", "LANG"))
    return "zh" if next(filter(None, variables), "").lower().startswith("zh") else "en"


def _checked(rule: Rule, ratio: float | None, advantage: float | None, probability: float | None) -> float:
    """π_old, once all numbers are known to make sense."""
    if ratio is None:
        if advantage is not None:
            raise InputError("--advantage alone says nothing of a token: add its ratio, e.g. --ratio 1.43")
        ratio = 1.0
    if not (math.isfinite(ratio) and ratio > 0):
        raise InputError(
            f"--ratio is {ratio:g}, but π_new/π_old is a finite number above 0; 1 is a token that has not moved"
        )
    if advantage is not None and not math.isfinite(advantage):
        raise InputError(f"--advantage is {advantage:g}, but must be a finite number")
    if probability is None:
        return min(PROBABILITY, 0.5 / ratio)
    if not 0 < probability < 1:
        raise InputError(f"--probability is {probability:g}, but π_old of a token lies between 0 and 1")
    if ratio_kind(rule) == "token" and uses_probability(rule) and ratio * probability >= 1:
        raise InputError(
            f"π_new = r·π_old would be {ratio * probability:g}, and no probability exceeds 1: with --ratio {ratio:g} "
            f"give a --probability below {1 / ratio:.4g}"
        )
    return probability


def _page(rule: Rule, start: Mapping[str, object], language: str | None) -> bytes:
    drawn = drawn_rules()
    if rule.name not in [one["name"] for one in drawn]:
        raise InputError(
            f"the page cannot draw {rule.name}: it looks at more than one token, or is your own; "
            f"`dinghai explain --rule {rule.name} --ratio 1.43` explains it here"
        )
    return explain_page(drawn, missing_rules(), None if start == {"rule": DEFAULT_RULE} else dict(start), language)


def _write_page(content: bytes, page: Path | None) -> Path:
    if page is None:
        page = Path(tempfile.mkdtemp(prefix="dinghai-")) / "explain.html"
    write_atomically(page, content, then="run `dinghai explain` again")
    return page


def _print_introduction(console: Console, words: Words) -> None:
    """The six cases, and how to see more."""
    console.print(Text(words.say("print.heading"), style="bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in range(2):
        table.add_column(overflow="fold")
    for name in CASES:
        effect = "stopped" if words.has(f"for.{name}.stopped") else "kept"
        table.add_row(
            Text(words.region(name), style="bold"),
            Text(words.say(f"who.{name}")),
            Text(words.purpose(name, effect, "")),
        )
    console.print(table)
    console.print(Text(f"\n{words.say('print.how')}"))
