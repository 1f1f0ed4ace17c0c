"""Trains in children that are killed, resumes what they left in others; see test_run_killed.py.

Usage: python train_and_kill.py FOLDER MOMENTS SEED; prints one JSON list with an entry for each moment.

A moment is either a time, or the n-th call of those in CALLS, before or after it: a write, a wait or a rename of
`dinghai.files`, a step of the cold start, the rename of the final model. One parent has imported everything and never
trains: each child begins where it is. Some are killed a second time while they resume.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_runs import code_of, differences, left_behind, resume_tiny, tiny

from dinghai import files
from dinghai.train import checkpoint, run
from dinghai.train.run import train
from dinghai.view.progress import TrainProgress

CALLS: list[tuple[Any, str]] = [(files, name) for name in ("write_all", "fsync_open", "fsync_folder", "rename")]
CALLS += [(checkpoint, "write_tensors"), (TrainProgress, "cold_start"), (Path, "rename"), (shutil, "rmtree")]
CHANGES = {"run": {"steps": 4}, "checkpoint": {"every": 2, "keep": 2}, "rollout": {"prompts": 2}}


def in_child(work: Callable[[], None]) -> int:
    """The wait status of a child that did `work`."""
    return os.waitpid(start_child(work), 0)[1]


def start_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os._exit(0)
    return child


def train_here(folder: Path, name: str) -> None:
    settings = tiny(folder, name, CHANGES)
    train(settings, code_of(settings))


class Watch:
    """Counts the calls of CALLS, and notes of each which it is and whether it is within the save of a checkpoint."""

    def __init__(self, on_call: Callable[[int, str], None] = lambda number, when: None) -> None:
        self.calls: list[tuple[str, bool]] = []
        self._saving = False
        self._on_call = on_call
        self._lock = threading.Lock()  # the trace is written by a thread of its own
        for owner, name in CALLS:
            setattr(owner, name, self._watched(name, getattr(owner, name)))
        save_checkpoint = run.save_checkpoint

        def save(*arguments: Any) -> Path:
            self._saving = True
            try:
                return save_checkpoint(*arguments)
            finally:
                self._saving = False

        run.save_checkpoint = save

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                number = len(self.calls)
                self.calls.append((name, self._saving))
            self._on_call(number, "before")
            result = real(*arguments, **options)
            self._on_call(number, "after")
            return result

        return call


def undisturbed(folder: Path, name: str) -> tuple[dict[str, Any], list[tuple[str, bool]], float]:
    """(what a run leaves, its calls, seconds)."""
    note = folder / "note.json"

    def work() -> None:
        watch = Watch()
        begun = time.monotonic()
        train_here(folder, name)
        note.write_text(json.dumps([watch.calls, time.monotonic() - begun]), "utf-8")

    assert in_child(work) == 0
    calls, seconds = json.loads(note.read_text("utf-8"))
    return left_behind(folder / name), [tuple(call) for call in calls], seconds


def killed_at(folder: Path, name: str, moment: tuple[str, Any]) -> bool:
    """Trains in a child that dies at the moment; whether it did die of it."""
    kind, value = moment
    if kind == "time":
        return killed_by_clock(functools.partial(train_here, folder, name), value)

    def die(number: int, when: str) -> None:
        if [number, when] == value:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        Watch(die)
        train_here(folder, name)

    return was_killed(in_child(work))


def killed_by_clock(work: Callable[[], None], seconds: float) -> bool:
    """Kills a child that does `work` after some seconds; whether it was still at it."""
    child = start_child(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return was_killed(os.waitpid(child, 0)[1])


def was_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def moments(count: int, calls: list[tuple[str, bool]], seconds: float) -> list[tuple[str, Any]]:
    """Some that must be among them; then in turn one by the clock, one within a save, one at any call."""
    saves = [n for n, (_, saving) in enumerate(calls) if saving]
    cold_start = [n for n, (name, _) in enumerate(calls) if name == "cold_start"]
    model = max(n for n, (name, _) in enumerate(calls) if name == "rename" and n > saves[-1])
    chosen: list[tuple[str, Any]] = [
        ("call", [0, "before"]),
        ("call", [cold_start[1], "after"]),
        ("call", [saves[0], "after"]),
        ("call", [model, "before"]),
        ("call", [len(calls) - 1, "before"]),
        ("call", [len(calls) - 1, "after"]),
    ]
    while len(chosen) < count:
        turn = len(chosen) % 3
        if turn == 0:
            chosen.append(("time", random.uniform(0.02, seconds)))
        else:
            number = random.choice(saves) if turn == 1 else random.randrange(len(calls))
            chosen.append(("call", [number, random.choice(["before", "after"])]))
    return chosen


def main(folder: Path, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    random.seed(seed)
    os.fsync = lambda descriptor: None  # the machine keeps its power
    undisturbed(folder, "warm-up")
    expected, calls, seconds = undisturbed(folder, "undisturbed")
    found = []
    for n, moment in enumerate(moments(count, calls, seconds)):
        name = f"run-{n}"
        place = folder / name
        killed = killed_at(folder, name, moment)
        is_run = place.exists()
        checkpoints = sorted(p.name for p in place.glob("checkpoints/*"))
        # One that was killed before it had a folder is begun again.
        again = functools.partial(resume_tiny, place) if is_run else functools.partial(train_here, folder, name)
        if n % 5 == 2 and is_run:
            killed_by_clock(again, random.uniform(0.02, seconds))
        resumed = in_child(again) == 0
        left = left_behind(place) if resumed else {}
        found.append(
            {
                "moment": moment if moment[0] == "time" else [*moment, calls[moment[1][0]][0]],
                "killed": killed,
                "in_save": moment[0] == "call" and calls[moment[1][0]][1],
                "is_run": is_run,
                "checkpoints": checkpoints,
                "resumed": resumed,
                # Only what was expected: a kill between the last save and the removal of an old one leaves one more.
                "differences": differences(expected, {k: v for k, v in left.items() if k in expected}),
                "rubbish": sorted(p.name for part in ("checkpoints", "trace") for p in (place / part).rglob(".*")),
            }
        )
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
