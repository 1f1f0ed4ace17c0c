"""What a check of the doctor is: a name, the thresholds it goes by with their sources, and a look at a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.finding import Finding
from dinghai.lens.doctor.threshold import Threshold

__all__ = ["Check", "Threshold"]


@dataclass(frozen=True)
class Check:
    """One fault that a run may have.

    early: whether it may be looked for while a run trains; then what it says must hold after a few steps as well.
    of_tokens: whether it sees nothing in a run without a trace.
    """

    name: str
    fault: str  # what is wrong where it fires, a short sentence without figures
    thresholds: dict[str, Threshold]
    look: Callable[[Case], Finding | None]
    early: bool = True
    of_tokens: bool = False
