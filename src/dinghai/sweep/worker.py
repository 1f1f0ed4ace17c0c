"""The child's side of `pool.py`: a process that trains one trial after another, one JSON line in, one JSON line out.

It pays for its imports once. The end of its standard input, which is what the parent's death looks like, ends it at
once, in the middle of a trial too: nobody would know of it, and its run can be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

from dinghai.sweep.perform import Job, load_rules, perform


def serve(setup: dict[str, Any]) -> None:
    """Trains what standard input asks for. `setup` is the first line that the parent sent."""
    channel = os.dup(1)
    os.dup2(2, 1)  # what a run prints is not for the parent
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    import dinghai.train.run  # noqa: F401  (its imports take seconds: once, and before the first trial)

    rule_code = load_rules(setup["rule_files"])
    _send(channel, {"ready": True})
    while True:
        _send(channel, dataclasses.asdict(perform(jobs.get(), setup["allowed_rewards"], rule_code)))


def _read_jobs(jobs: queue.SimpleQueue[Job]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(Job(**json.loads(line)))
    os._exit(1)


def _send(channel: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]
