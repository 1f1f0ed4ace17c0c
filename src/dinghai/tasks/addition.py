"""The built-in task: column addition, with a teacher that errs and a verifier that does not.

The problem `476+385=` is answered column by column from the right, then in full: `11,16,08=861` (6+5=11, 7+8+1=16,
4+3+1=08). The teacher of the cold start works that way but forgets each carry with probability `forget_carry`, so
what a model learns from it is mostly wrong wherever a carry occurs. The verifier reads only the number after the last
`=`. Reinforcement learning has something real to do: the right step is among the model's own samples, but it is
not the likeliest one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from hashlib import blake2b

from dinghai.config.settings import AdditionTaskSettings
from dinghai.errors import InputError
from dinghai.tasks.base import Prompt

FINAL_ANSWER = re.compile(r"=\s*([0-9]{1,20})\s*$")

# One problem in so many is kept out of training, by a hash of its two numbers: no training prompt is ever held out.
HELD_OUT_SHARE = 16


def column_addition(a: int, b: int, digits: int, forgets: Callable[[], bool]) -> str:
    """The written-out addition of a and b; `forgets()` is asked at each carry whether it is dropped."""
    columns: list[str] = []
    carry = 0
    for place in range(digits):
        total = a // 10**place % 10 + b // 10**place % 10 + carry
        columns.append(f"{total:02d}")
        carry = total // 10
        if carry and place < digits - 1 and forgets():
            carry = 0
    answer = columns[-1].lstrip("0") + "".join(column[1] for column in reversed(columns[:-1]))
    return ",".join(columns) + "=" + (answer.lstrip("0") or "0")


class AdditionTask:
    """Addition of two numbers with `digits` digits each; prompts are a pure function of (seed, index)."""

    name = "addition"

    def __init__(self, settings: AdditionTaskSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._low = 10 ** (settings.digits - 1) if settings.digits > 1 else 0
        self._high = 10**settings.digits - 1
        self.held_out = self._draw_held_out(settings.held_out)

    def train_prompt(self, index: int) -> Prompt:
        return self._prompt(*self._draw_pair("train", index))

    def demonstration(self, index: int) -> tuple[Prompt, str] | None:
        """A worked example of the teacher that forgets carries."""
        a, b = self._draw_pair("teach", index)
        generator = self._generator("forget", index)
        forget = self._settings.forget_carry
        return self._prompt(a, b), column_addition(a, b, self._settings.digits, lambda: generator.random() < forget)

    def score(self, prompt: Prompt, completion: str) -> float:
        """1 if the number after the last `=` is the sum, else 0."""
        found = FINAL_ANSWER.search(completion[-64:])
        return float(found is not None and found.group(1) == prompt.answer)

    def score_batch(self, prompts: list[Prompt], completions: list[str]) -> list[float]:
        return [self.score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def close(self) -> None:
        """Nothing to free."""

    def _prompt(self, a: int, b: int) -> Prompt:
        return Prompt(id=f"{a}+{b}", text=f"{a}+{b}=", answer=str(a + b))

    def _generator(self, stream: str, index: int) -> random.Random:
        return random.Random(f"{self._seed}/{stream}/{index}")

    def _draw_pair(self, stream: str, index: int) -> tuple[int, int]:
        generator = self._generator(stream, index)
        while True:
            pair = generator.randint(self._low, self._high), generator.randint(self._low, self._high)
            if not _is_held_out(*pair):
                return pair

    def _draw_held_out(self, count: int) -> list[Prompt]:
        generator = random.Random("held out")  # the same problems for every seed, so that runs can be compared
        pairs: dict[tuple[int, int], None] = {}
        for _ in range(count * HELD_OUT_SHARE * 20):
            pair = generator.randint(self._low, self._high), generator.randint(self._low, self._high)
            if _is_held_out(*pair):
                pairs[pair] = None
            if len(pairs) == count:
                return [self._prompt(*pair) for pair in pairs]
        raise InputError(
            f"task.held_out is {count}, but with task.digits = {self._settings.digits} only about {len(pairs)} "
            "problems can be held out: lower task.held_out or raise task.digits"
        )


def _is_held_out(a: int, b: int) -> bool:
    return blake2b(f"{a}+{b}".encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0
