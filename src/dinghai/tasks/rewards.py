"""Rewards: the task's own verifier and functions of one's own, added with weights.

A function of one's own is called with keywords, of which it declares those it wants:

    def brevity(completions, **others):                  # prompts, completions, answers, prompt_ids, extras
        return [1 / (1 + len(text)) for text in completions]

It returns one finite number for each completion. It may be a coroutine function
(`async def`); several run concurrently.
Only files named on the command line are loaded, so that a configuration that somebody sends you cannot run code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinghai.config.settings import RewardSettings
from dinghai.errors import InputError
from dinghai.tasks.base import Prompt, Task
from dinghai.tasks.reward_calls import call_rewards
from dinghai.tasks.reward_files import RewardFunction, load_function

TASK = "task"
_SOURCE = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)")  # the last colon counts: C:\my.py:f


@dataclass(frozen=True)
class RewardTable:
    """The rewards of one batch.

    names: of the rewards, in order; each is distinct
    parts: each reward's score of each completion, before its weight
    total: the weighted sum, one a completion
    """

    names: tuple[str, ...]
    parts: dict[str, list[float]]
    total: list[float]


class Rewards:
    """The rewards of a run. `fingerprints` maps each source to the SHA-256 of the file that was loaded."""

    def __init__(self, sources: Sequence[tuple[str, float, RewardFunction | None]], task: Task) -> None:
        self._task = task
        self._weights = [weight for _, weight, _ in sources]
        self._functions = [function for _, _, function in sources]
        self.names = _distinct([function.name if function else TASK for function in self._functions])
        self.fingerprints = {source: function.fingerprint for source, _, function in sources if function}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> RewardTable:
        """Scores each completion of the prompt beside it. Raises InputError if a function of one's own errs."""
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts but {len(completions)} completions")
        own = [(name, f) for name, f in zip(self.names, self._functions, strict=True) if f is not None]
        parts = call_rewards(own, prompts, completions) if completions else {name: [] for name, _ in own}
        if any(function is None for function in self._functions):
            verdicts = self._task.score_batch(list(prompts), list(completions))
            parts |= {name: list(verdicts) for name, f in zip(self.names, self._functions, strict=True) if f is None}
        parts = {name: parts[name] for name in self.names}
        total = [
            math.fsum(weight * parts[name][i] for name, weight in zip(self.names, self._weights, strict=True))
            for i in range(len(completions))
        ]
        return RewardTable(self.names, parts, total)


def load_rewards(settings: Sequence[RewardSettings], task: Task, allowed_sources: Collection[str]) -> Rewards:
    """Loads the rewards of a run.

    allowed_sources: the sources that the command line named. Any other file is refused with an InputError.
    """
    allowed = {_identity(source) for source in allowed_sources if source != TASK}
    sources: list[tuple[str, float, RewardFunction | None]] = []
    for reward in settings:
        if reward.source == TASK:
            sources.append((TASK, reward.weight, None))
            continue
        file, function = split_source(reward.source)
        if _identity(reward.source) not in allowed:
            raise InputError(
                f"the configuration asks for the reward {reward.source}, which is code: "
                f"if you trust it, name it on the command line too: --reward {reward.source}"
            )
        sources.append((reward.source, reward.weight, load_function(file, function)))
    return Rewards(sources, task)


def parse_reward(text: str) -> RewardSettings:
    """`task`, `my.py:brevity`, or either with a weight: `my.py:brevity*0.2`. Raises InputError."""
    source, star, weight_text = text.rpartition("*")
    if not star:
        source, weight_text = text, "1"
    try:
        weight = float(weight_text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InputError(f"--reward {text}: the weight {weight_text!r} is not a number; write FILE.py:FUNCTION*0.2")
    source = source.strip()
    if source != TASK:
        split_source(source)
    return RewardSettings(source=source, weight=weight)


def split_source(source: str) -> tuple[Path, str]:
    """The file and the function of `FILE.py:FUNCTION`. Raises InputError."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise InputError(f"the reward {source!r} is neither `task` nor FILE.py:FUNCTION")
    return Path(match["file"]), match["function"]


def _identity(source: str) -> tuple[Path, str]:
    file, function = split_source(source)
    return file.expanduser().resolve(), function


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    distinct: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in distinct or (candidate != name and candidate in names):
            number += 1
            candidate = f"{name}_{number}"
        distinct.append(candidate)
    return tuple(distinct)
