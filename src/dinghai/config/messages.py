"""Words for error messages: text that is safe to print, and the nearest valid name to a misspelt one."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST_VALUE = 80

# Of difflib's ratio: one wrong, missing or swapped letter in a name of four or more passes, another word does not.
_ALIKE = 0.66


def printable(text: str) -> str:
    """`text` with every character that could steer a terminal or reorder a line written as an escape; newlines stay.

    Covers control characters (Cc), invisible format and bidirectional ones (Cf), lone surrogates and the Unicode
    line separators. Names of files, keys and values come from outside and must not colour or rewrite what we say.
    """
    return "".join(_escaped(c) if c != "\n" and _is_unsafe(c) else c for c in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str, longest: int = 300) -> str:
    """`text` on one line, safe to print, cut to `longest` characters."""
    line = printable(text[: longest + 1].replace("\n", "\\n"))
    return line if len(line) <= longest else line[: longest - 1] + "…"


def value_text(value: Any) -> str:
    """A setting's value as one would write it in TOML (None is `none`), on one line, cut where it is long."""
    if value is None:
        return "none"
    if isinstance(value, str | bool | int | float | list | tuple | dict):
        return one_line(json.dumps(value, ensure_ascii=False, default=str), _LONGEST_VALUE)
    return one_line(str(value), _LONGEST_VALUE)  # dates and times of TOML


def nearest(word: str, words: Iterable[str], count: int = 3) -> list[str]:
    """The valid words closest to a misspelt one, best first.

    Of a dotted key the last part must be alike: a right table with a wrong key is near to nothing in particular.
    """
    scored = [(_alike(_last_part(word), _last_part(w)), _alike(word, w), w) for w in dict.fromkeys(words)]
    close = [(whole, w) for last, whole, w in scored if last >= _ALIKE]
    return [w for _, w in sorted(close, key=lambda pair: -pair[0])[:count]]


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`; did you mean A or B?`, or nothing where no valid word is near."""
    found: Sequence[str] = nearest(word, words)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _last_part(key: str) -> str:
    return key.rsplit(".", 1)[-1]
