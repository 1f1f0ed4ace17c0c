"""Nothing that a model writes acts on the terminal; what is harmless stays as it is."""

from __future__ import annotations

import io
import unicodedata

import payloads
import pytest
from rich.console import Console
from rich.text import Text

from dinghai.text import safe


@pytest.mark.parametrize("payload", payloads.ALL, ids=ascii)
def test_no_character_that_acts_is_left(payload: str) -> None:
    shown = safe(payload)
    assert all(unicodedata.category(character)[0] not in "C" for character in shown)
    assert not {"Zl", "Zp"} & {unicodedata.category(character) for character in shown}
    assert len(shown.splitlines()) <= 1
    assert shown.replace("\u3000", " ").isprintable()  # Python counts the ideographic space among the unprintable


@pytest.mark.parametrize("payload", payloads.ALL, ids=ascii)
def test_rich_prints_it_letter_for_letter(payload: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=10_000, color_system="truecolor", emoji=True)
    console.print(Text(safe(payload)), highlight=False)
    assert out.getvalue() == safe(payload) + "\n"


def test_there_are_enough_payloads() -> None:
    assert len(set(payloads.ALL)) >= 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),
        ("\x9b", "\\x9b"),
        ("no\xa0break thin\u2009space", "no\\xa0break thin\\u2009space"),
        ("全角\u3000空格", "全角\u3000空格"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("a\nb", "a⏎b"),
        ("a\tb", "a\\tb"),
        ("a\r\nb", "a\\x0d⏎b"),
    ],
)
def test_escapes_name_the_character(text: str, shown: str) -> None:
    assert safe(text) == shown


@pytest.mark.parametrize(
    "text", ["", "plain ASCII [x] \\frac{1}{2}", "限制冒进 — ε, π", "naïve café", "日本語", "😀", "a b"]
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert safe(text) == text


def test_lines_can_be_kept() -> None:
    assert safe("a\nb\x1b", newline="\n") == "a\nb\\x1b"


def test_every_code_point_is_safe() -> None:
    for start in range(0, 0x110000, 0x1000):
        shown = safe("".join(map(chr, range(start, start + 0x1000))))
        assert shown.isprintable() or all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
        assert "\x1b" not in shown
