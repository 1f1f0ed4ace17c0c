"""Tasks: where prompts come from and how an answer is scored; and rewards, the task's or one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinghai.tasks.base import Prompt, Task

if TYPE_CHECKING:  # the processes that check answers import this package, and should start fast
    from dinghai.config.settings import TaskSettings

__all__ = ["Prompt", "Task", "build_task"]


def build_task(settings: TaskSettings, seed: int) -> Task:
    """The task that the settings describe. Raises InputError if its data or a package it needs is missing.

    Imports lazily: the built-in task needs neither reasoning-gym nor math-verify.
    """
    if settings.kind == "addition":
        from dinghai.tasks.addition import AdditionTask

        return AdditionTask(settings, seed)
    if settings.kind == "jsonl":
        from dinghai.tasks.jsonl import JsonlTask

        return JsonlTask(settings, seed)
    from dinghai.tasks.reasoning_gym import ReasoningGymTask

    return ReasoningGymTask(settings, seed)
