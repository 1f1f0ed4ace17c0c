"""Questions and answers from a JSON-lines file, scored with math-verify."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dinghai.config.settings import JsonlTaskSettings
from dinghai.errors import InputError, RunFailed
from dinghai.tasks.answers import final_answer, is_words, quick_verdict, text_verdict
from dinghai.tasks.base import Prompt
from dinghai.tasks.checker import CheckerPool
from dinghai.tasks.jsonl_file import Line, read_lines

logger = logging.getLogger(__name__)

_MOST_WORKERS = 4


class JsonlTask:
    """The lines of a file, `held_out` of them (chosen by the seed) kept out of training.

    A training line whose question is also held out is left out, so that held-out accuracy means what it says.
    Answers that are numbers or words are compared at once; others go to math-verify, in processes of their own.

    timeouts, crashes: answers that scored 0 since their check took longer than `settings.timeout`, or ended its worker
    """

    name = "jsonl"

    def __init__(self, settings: JsonlTaskSettings, seed: int) -> None:
        _require_math_verify()
        self._settings = settings
        self._seed = seed
        self.timeouts = 0
        self.crashes = 0
        self._pool = CheckerPool(
            "dinghai.tasks.check_math:make_checker",
            None,
            workers=min(_MOST_WORKERS, os.cpu_count() or 1),
            timeout=settings.timeout,
        )
        lines = read_lines(Path(settings.path), settings.question_key, settings.answer_key)
        self._split(lines)
        # The order of one pass through the data; two, since a batch may straddle the end of a pass.
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def train_prompt(self, index: int) -> Prompt:
        """The index-th training prompt: a pass through the data, then another in another order, and so on."""
        number, position = divmod(index, len(self._train))
        return self._prompt(self._train[self._order(number)[position]])

    def demonstration(self, index: int) -> tuple[Prompt, str]:
        """A training prompt with its answer, written the way the instruction asks for it."""
        number, position = divmod(index, len(self._train))
        line = self._train[self._order(number)[position]]
        return self._prompt(line), self._worked_answer(line.answer)

    def score(self, prompt: Prompt, completion: str) -> float:
        """1 if the completion's final answer is the prompt's, else 0."""
        return self.score_batch([prompt], [completion])[0]

    def score_batch(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """The scores of many completions; those that need math-verify are checked in parallel."""
        scores = [self._immediate(p.answer or "", c) for p, c in zip(prompts, completions, strict=True)]
        waiting = [i for i, score in enumerate(scores) if score is None]
        jobs = [{"gold": prompts[i].answer, "text": completions[i]} for i in waiting]
        for i, outcome in zip(waiting, self._pool.check(jobs), strict=True):
            if outcome.fault == "raised":
                raise RunFailed(f"math-verify failed on the answer to {prompts[i].id}: {outcome.detail}")
            if outcome.fault is not None:
                self._count(outcome.fault, prompts[i])
            scores[i] = float(outcome.value or 0.0)
        return [score or 0.0 for score in scores]

    def close(self) -> None:
        """Ends the processes that check answers."""
        self._pool.close()

    @staticmethod
    def _immediate(gold: str, completion: str) -> float | None:
        verdict = text_verdict(gold, completion) if is_words(gold) else quick_verdict(gold, completion)
        return None if verdict is None else float(verdict)

    def _count(self, fault: str, prompt: Prompt) -> None:
        if fault == "timeout":
            self.timeouts += 1
            reason = f"took longer than task.timeout ({self._settings.timeout:g} s)"
        else:
            self.crashes += 1
            reason = "ended its process twice"
        logger.warning("the check of an answer to %s %s; it scores 0", prompt.id, reason)

    def _split(self, lines: list[Line]) -> None:
        held_out = self._settings.held_out
        if len(lines) <= held_out:
            raise InputError(
                f"{self._settings.path} has {len(lines)} lines, but task.held_out ({held_out}) are kept out of "
                "training: lower task.held_out or give more lines"
            )
        order = list(range(len(lines)))
        _generator(self._seed, "held out").shuffle(order)
        kept_out = [lines[i] for i in sorted(order[:held_out])]
        questions = {line.question for line in kept_out}
        self.held_out = [self._prompt(line) for line in kept_out]
        self._train = [lines[i] for i in sorted(order[held_out:]) if lines[i].question not in questions]
        if not self._train:
            raise InputError(
                f"{self._settings.path} has no question left for training: all others repeat a held-out one; "
                "lower task.held_out"
            )
        if repeated := len(lines) - held_out - len(self._train):
            logger.warning("%d lines are left out of training: they repeat a held-out question", repeated)

    def _shuffled(self, number: int) -> list[int]:
        order = list(range(len(self._train)))
        _generator(self._seed, f"pass {number}").shuffle(order)
        return order

    def _prompt(self, line: Line) -> Prompt:
        return Prompt(
            id=f"{Path(self._settings.path).stem}:{line.number}",
            text=line.question + self._settings.instruction,
            answer=final_answer(line.answer),
            extra=line.extra,
        )

    def _worked_answer(self, answer: str) -> str:
        if "\\boxed" not in self._settings.instruction or "\\boxed" in answer:
            return answer
        solution = answer.rpartition("####")[0].strip()
        return f"{solution}\n\\boxed{{{final_answer(answer)}}}".lstrip("\n")


def _generator(seed: int, purpose: str) -> random.Random:
    """A generator of its own for each purpose, the same on every machine (hash() is not)."""
    return random.Random(int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big"))


def _require_math_verify() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("task.kind = \"jsonl\" needs math-verify: install it with `pip install 'dinghai[tasks]'`")
