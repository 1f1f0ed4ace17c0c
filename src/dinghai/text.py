"""Makes text that a model or a data set wrote harmless to show.

A completion may hold anything: terminal commands that retitle the window or forge links, markup of the library that
prints it, characters that reverse the reading order or cannot be seen. Whatever acts instead of showing is turned
into a visible escape such as `\\x1b` or `\\u202e`; everything else stays as it is.
"""

from __future__ import annotations

import re
import unicodedata

NEWLINE = "⏎"

# Letters and marks by category that nevertheless show nothing, and so can hide text or a width.
_INVISIBLE = {
    0x034F,  # combining grapheme joiner
    0x115F,  # Hangul fillers: this and the next three
    0x1160,
    0x3164,
    0xFFA0,
    0x17B4,  # Khmer inherent vowels
    0x17B5,
    0x2800,  # blank Braille pattern
    *range(0x180B, 0x1810),  # Mongolian variation selectors and vowel separator
    *range(0xFE00, 0xFE10),  # variation selectors
    *range(0xE0000, 0xE1000),  # tags and more variation selectors
}

# Spaces that look like a space and are another token: no-break, en, thin and the like. (The ideographic one is wider.)
_OTHER_SPACES = {0x00A0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F}

_ESCAPED = _INVISIBLE | _OTHER_SPACES

# Control, format (bidi overrides, zero-width), surrogate, private use, unassigned, line and paragraph separators.
_ACTING_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

_PLAIN_ASCII = re.compile(r"[ -~]*")


def safe(text: str, newline: str = NEWLINE) -> str:
    """The text with every acting or invisible character shown as an escape. A plain string; it holds no markup.

    Args:
        newline: what a line feed becomes; "\\n" keeps the lines.
    """
    if _PLAIN_ASCII.fullmatch(text):
        return text
    return "".join(newline if character == "\n" else _visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\t":
        return "\\t"
    if unicodedata.category(character) not in _ACTING_CATEGORIES and code not in _ESCAPED:
        return character
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
