"""What a task is: where prompts come from, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """One problem.

    id:     names the problem in traces and messages, unique within the task
    text:   what the model is given (before any chat template)
    answer: what the verifier compares with, where the task has such a thing
    extra:  further fields of the data, handed to reward functions
    """

    id: str
    text: str
    answer: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Prompts and their verifier. Everything is a function of the seed and an index, so a run can be resumed."""

    name: str

    @property
    def held_out(self) -> Sequence[Prompt]:
        """The problems that training never sees."""
        ...

    def train_prompt(self, index: int) -> Prompt:
        """The index-th training prompt (0, 1, 2, … without end; a finite set starts anew in another order)."""
        ...

    def score(self, prompt: Prompt, completion: str) -> float:
        """The verifier's verdict, 0 to 1; it does not err."""
        ...

    def score_batch(self, prompts: list[Prompt], completions: list[str]) -> list[float]:
        """The verdict on each completion of the prompt beside it; checked in parallel where that takes time."""
        ...

    def demonstration(self, index: int) -> tuple[Prompt, str] | None:
        """The index-th worked example (prompt, completion) for the cold start; None where the task has none."""
        ...

    def close(self) -> None:
        """Frees what the verifier holds (worker processes)."""
        ...
