"""What a check says of a run: what is wrong, by which figures and where, why, and how to mend it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

View = Literal["summary", "curves", "regions", "clip", "tokens", "replay", "settings"]
"""The sections of the report and the live page, by the ids of their elements."""


class Grade(IntEnum):
    """How grave a finding is; findings are ranked by it."""

    NOTE = 1
    WASTEFUL = 2
    HARMFUL = 3
    INVALID = 4


GRADE_MEANING = {
    Grade.INVALID: "the gradient or the figures are not what they seem",
    Grade.HARMFUL: "the policy gets worse, or cannot get better",
    Grade.WASTEFUL: "much is computed for nothing",
    Grade.NOTE: "worth knowing",
}


@dataclass(frozen=True)
class Place:
    """Where in a run something is seen, as far as it can be said. Numbers are those of the trace."""

    step: int | None = None
    update: int | None = None  # within the batch of rollouts, from 0
    group: int | None = None
    sample: int | None = None
    position: int | None = None  # of the token within its completion, from 0


@dataclass(frozen=True)
class Evidence:
    """A sentence with a figure in it, and where that figure is seen."""

    text: str
    place: Place = Place()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Texts are written so that "TITLE: first evidence. FIX." reads well: without a full stop at their end, and evidence
    and fix begin with a small letter where they may.
    """

    check: str  # name of the check, e.g. "epsilon-cannot-act"
    grade: Grade
    share: float  # of the run or of its gradient that it concerns, 0 to 1: ranks findings of one grade
    title: str  # what is wrong, a short sentence, e.g. "Entropy collapsed"
    evidence: tuple[Evidence, ...]  # the first is the strongest
    cause: str  # why that happens
    fix: str  # what to set, in the words of the configuration, e.g. "try a lower update.lr"
    view: View  # the section that shows it

    @property
    def sentence(self) -> str:
        """What is wrong, its strongest evidence and what to try, for a list of such sentences."""
        said = f"{_ended(self.title)}: {_ended(self.evidence[0].text)}." if self.evidence else f"{_ended(self.title)}."
        return f"{said} {opened(_ended(self.fix))}."

    def as_json(self) -> dict[str, Any]:
        """For a page: as the fields are, places without what they do not say."""
        found = dataclasses.asdict(self) | {"grade": self.grade.name.lower()}
        for one in found["evidence"]:
            one["place"] = {key: value for key, value in one["place"].items() if value is not None}
        return found


def _ended(text: str) -> str:
    """Without the full stop that follows in a sentence."""
    return text.rstrip().rstrip(".")


def opened(text: str) -> str:
    """With a capital at its beginning, unless that is a symbol, or the name of a setting or a command."""
    word = text.split(" ", 1)[0]
    named = word in {"r", "w", "p"} or any(mark in word for mark in "._`")
    return text if named else text[:1].upper() + text[1:]
