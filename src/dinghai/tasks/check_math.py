"""The worker's verifier for mathematics: math-verify, without its own timeouts (they need the main thread's signals).

`CheckerPool` bounds the time from outside instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def make_checker(config: None) -> Callable[[dict[str, str]], float]:
    """A checker of {"gold": answer of the data, "text": what the model wrote}, which returns 1.0 or 0.0."""
    from math_verify import parse, verify

    @lru_cache(maxsize=65_536)
    def parse_gold(gold: str) -> Any:
        return parse(as_latex(gold), parsing_timeout=None)

    def check(job: dict[str, str]) -> float:
        target = parse(job["text"], parsing_timeout=None)
        return float(verify(parse_gold(job["gold"]), target, timeout_seconds=None))

    return check


_MARKED_AS_MATHEMATICS = re.compile(r"\\boxed\s*\{|\$[^$]+\$|\\\(|\\\[")


def as_latex(gold: str) -> str:
    r"""math-verify looks for mathematics in prose; an answer that is nothing but mathematics is marked as such.

    Without it `x^2+1` would be read as the number 1.
    """
    return gold if _MARKED_AS_MATHEMATICS.search(gold) else f"\\boxed{{{gold}}}"
