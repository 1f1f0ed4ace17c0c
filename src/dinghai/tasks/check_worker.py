"""The child's side of `checker.py`: a process that checks answers, one JSON line in, one JSON line out.

It imports no torch and nothing of the trainer, so that it starts in the time its verifier takes to import. It runs text
that a model wrote through libraries that were not made for hostile input, so it is built to be killed:

- a kernel timer (not a Python handler, which a long computation in C would never let run) ends it when a check takes
  too long, even if the parent is gone by then;
- the end of its standard input, which is what the parent's death looks like, ends it when it is idle;
- its address space is bounded.

This is no sandbox: see `check_reasoning.py` for what is kept away from verifiers that evaluate text.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# The parent kills a late worker; the worker's own timer is the second line, so it must be the later of the two.
_GRACE_SECONDS = 1.0


def serve(setup: dict[str, Any]) -> None:
    """Answers jobs from standard input until it ends. `setup` is the first line that the parent sent."""
    channel = _take_over_stdout()
    _ignore_interrupts()
    try:
        check = _load(setup["checker"])(setup["config"])
    except BaseException as error:
        _send(channel, {"error": f"{type(error).__name__}: {error}"[:2000]})
        return
    # Only now: an import may reserve more address space than it uses, and a verifier may print what a model wrote.
    _bound_memory(setup["memory_bytes"])
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _send(channel, {"ready": True})
    for line in sys.stdin.buffer:
        _send(channel, _answer(check, json.loads(line), setup["timeout"]))


def _answer(check: Callable[[Any], Any], job: Any, timeout: float) -> dict[str, Any]:
    _set_timer(timeout + _GRACE_SECONDS)
    try:
        return {"result": check(job)}
    except Exception as error:  # handed to the parent, which decides what it means
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    finally:
        _set_timer(0)


def _load(path: str) -> Callable[[Any], Callable[[Any], Any]]:
    module, _, function = path.partition(":")
    loaded: Callable[[Any], Callable[[Any], Any]] = getattr(importlib.import_module(module), function)
    return loaded


def _take_over_stdout() -> int:
    """Keeps the channel to the parent for ourselves: what a verifier prints must not be read as a verdict."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


def _send(channel: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def _ignore_interrupts() -> None:
    """Ctrl-C is for the parent, which then closes its workers."""
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _set_timer(seconds: float) -> None:
    """SIGALRM keeps its default action, which the kernel carries out: the process ends."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _bound_memory(limit_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    with contextlib.suppress(ValueError, OSError):  # macOS refuses; the time limit still holds
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
