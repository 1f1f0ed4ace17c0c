"""Trials of the tiny run, with a reward that kills its process, or the sweep, or errs, at its second call."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tiny_runs import BASE

from dinghai.sweep.trials import Trial

# Each run executes the file anew, so CALLS counts the batches of one process's run. `once` is a folder of notes.
REWARD = """
import os, signal
from pathlib import Path

ONCE = Path({once!r})
CALLS = []

def spread(completions, **others):
    CALLS.append(len(completions))
    return [sum(map(ord, text)) % 7 / 6 for text in completions]

def first_time(name):
    note = ONCE / name
    if len(CALLS) < 2 or note.exists():
        return False
    note.touch()
    return True

def killed_once(completions, **others):
    scores = spread(completions)
    if first_time("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return scores

def raises(completions, **others):
    scores = spread(completions)
    if len(CALLS) == 2 and not (ONCE / "mended").exists():
        raise RuntimeError("a fault of the reward's")
    return scores

def interrupts(completions, **others):
    scores = spread(completions)
    if first_time("interrupted"):
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    return scores
"""


def write_rewards(folder: Path) -> Path:
    """The file of the rewards, whose notes are kept beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / "rewards.py"
    path.write_text(REWARD.format(once=str(folder)), "utf-8")
    return path


def trial(name: str, rewards: Path, function: str = "spread", **tables: dict[str, Any]) -> Trial:
    """A tiny trial; `tables` are laid over its tables."""
    settings: dict[str, Any] = copy.deepcopy(BASE)
    for key, table in tables.items():
        settings.setdefault(key, {}).update(table)
    return Trial(name, settings | {"rewards": [{"source": f"{rewards}:{function}"}]})


def sources(trials: list[Trial]) -> set[str]:
    """The code that the trials name."""
    return {reward["source"] for one in trials for reward in one.settings["rewards"]}
