"""Which bound of the rule moved the entropy, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check
from dinghai.lens.doctor.finding import Evidence

CHECKS: tuple[Check, ...] = ()


def attribution(case: Case, steps: Sequence[int]) -> Evidence | None:
    """How each bound moved the entropy in these steps; None where the trace does not say."""
    return None
