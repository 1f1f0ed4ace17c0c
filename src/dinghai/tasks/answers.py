r"""Answers in text: the final one of a worked solution, and the verdicts that need no computer algebra.

`quick_verdict` decides only where math-verify's own rules leave a single reading, and leaves the rest to it; a test
holds the two to the same verdict. `text_verdict` is for answers that are words: math-verify reads `Paris` as a product
of five symbols, and so takes `Sirap` for the same answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"-?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|0|[1-9][0-9]{0,14})(?:\.[0-9]{1,6})?"
_GOLD_NUMBER = re.compile(rf"\$?({_NUMBER})")
_BARE_NUMBER = re.compile(_NUMBER)
_BOXED_NUMBER = re.compile(rf"\\boxed\{{({_NUMBER})\}}")
# A number at the very end, after a word or a mark that cannot be a part of it: no operator, digit or bracket.
_LAST_NUMBER = re.compile(rf"(?:[A-Za-z][:,]?|#)[ \n]+({_NUMBER})\.?\Z")
_LONGEST_TAIL = 64  # characters: a number and the word before it

_WORDS = re.compile(r"[^\W\d_]+(?:[ '’\-][^\W\d_]+)*[.!]?")
_ANSWER_IS = re.compile(r".*\banswer\s*(?:is|:)\s*:?\s*(.+)", re.IGNORECASE | re.DOTALL)
_WRAPPER = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")


def final_answer(answer: str) -> str:
    """What follows the last `####` (the custom of GSM8K), or else the whole; without surrounding space."""
    return answer.rpartition("####")[2].strip()


def quick_verdict(gold: str, completion: str) -> bool | None:
    """Whether a plain number answers a plain number; None where only math-verify can tell."""
    expected = _GOLD_NUMBER.fullmatch(gold)
    found = _only_reading(completion.strip()) if expected else None
    if expected is None or found is None:
        return None
    left, right = _value(expected[1]), _value(found)
    if left == right:
        return True
    if left.denominator == right.denominator == 1 and "." not in expected[1] + found:
        return False
    return None  # decimals are compared after rounding, which is math-verify's to do


def _only_reading(text: str) -> str | None:
    """The number that math-verify must read in the text, if there is no second candidate."""
    if _BARE_NUMBER.fullmatch(text):
        return text
    lowered = text.lower()
    if "%" in text or "percent" in lowered or "pct" in lowered:
        return None
    if "\\boxed" in text:
        boxes = list(_BOXED_NUMBER.finditer(text))
        if len(boxes) != 1 or "final answer" in lowered:
            return None
        rest = text[: boxes[0].start()] + text[boxes[0].end() :]
        return None if any(c in rest for c in "\\${}[]") else boxes[0][1]
    if "answer" in lowered:  # math-verify then prefers what stands after that word
        return None
    last = _LAST_NUMBER.search(text[-_LONGEST_TAIL:])
    return last[1] if last else None


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def is_words(gold: str) -> bool:
    """Whether an answer of the data is words rather than mathematics (`Paris`, `no`, `B`, `New York`)."""
    return _WORDS.fullmatch(_unwrapped(gold)) is not None


def text_verdict(gold: str, completion: str) -> bool:
    r"""Whether the completion's last \boxed{}, or else its last line, says the same words, whatever their case."""
    stated = _last_boxed(completion)
    if stated is None:
        lines = completion.strip().splitlines() or [""]
        stated = final_answer(lines[-1])
        after = _ANSWER_IS.fullmatch(stated)
        stated = after[1] if after else stated
    return _folded(stated) == _folded(gold)


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : i]
    return None


def _unwrapped(text: str) -> str:
    return _WRAPPER.sub(r"\1", text).strip().strip("$*\"'").strip()


def _folded(text: str) -> str:
    return " ".join(_unwrapped(text).rstrip(".!").casefold().split())
