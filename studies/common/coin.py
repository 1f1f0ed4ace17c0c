"""A reward that means nothing: 1 or 0 by the toss of a coin, whatever the completion says.

It draws from the global generator, which a run seeds before each step, so a run can be repeated and resumed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def coin(completions: Sequence[str]) -> list[float]:
    """1.0 or 0.0 for each completion, equally likely."""
    return [float(random.random() < 0.5) for _ in completions]
