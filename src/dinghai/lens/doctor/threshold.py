"""Where a value begins to be worth a finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["paper", "arithmetic", "statistics", "measured here", "folklore"]


@dataclass(frozen=True)
class Threshold:
    """Where a value begins to be worth a finding, why there, and what that rests on."""

    value: float
    why: str
    source: Source
