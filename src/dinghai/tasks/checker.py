"""Checks answers in processes of their own, so that no answer can hang, crash or bloat the run.

A check that exceeds its time is killed and its worker replaced. A worker that dies is replaced and its job tried once
more, since the death may not have been the job's doing. The workers talk JSON over pipes (no pickle), and are plain
child processes rather than multiprocessing's: those would import the user's main script, and torch with it.

No worker outlives `close()`, the interpreter, or (by more than the time of one check) a parent that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Literal

from dinghai.errors import RunFailed

_BOOTSTRAP = (
    "import json, sys; setup = json.loads(sys.stdin.buffer.readline()); sys.path[:] = setup['path']; "
    "from dinghai.tasks.check_worker import serve; serve(setup)"
)
# A verifier evaluates what a model wrote, so a worker gets only what it needs to start, and no secrets.
_PASSED_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "USERPROFILE")
_STARTUP_SECONDS = 120.0  # the imports of a verifier on a busy machine; a healthy start takes a few seconds
_MEMORY_BYTES = 4 * 2**30
_ATTEMPTS = 2


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    value:  what the checker returned, where it did
    fault:  `timeout` (killed at the limit), `died` (the worker ended, twice), `raised` (the checker raised), or none
    detail: the exception in words, for `raised`
    """

    value: Any = None
    fault: Literal["timeout", "died", "raised"] | None = None
    detail: str = ""


class CheckerPool:
    """Runs one checker in up to `workers` processes, which start when they are first needed.

    checker: `module:function`; the worker calls function(config) once, and what that returns for each job, in JSON
    timeout: seconds one check may take, not counting the start of its worker
    """

    def __init__(self, checker: str, config: Any, *, workers: int, timeout: float) -> None:
        self.timeout = timeout
        self._setup = {
            "checker": checker,
            "config": config,
            "timeout": timeout,
            "memory_bytes": _MEMORY_BYTES,
            "path": [os.path.abspath(entry) for entry in sys.path],
        }
        self._workers: list[_Worker | None] = [None] * workers
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Starts one worker without waiting for it, so that the first check finds it ready."""
        with self._lock:
            if not self._closed and self._workers[0] is None:
                self._start(0)

    def check(self, jobs: Sequence[Any]) -> list[Outcome]:
        """The outcome of each job, in order. Raises RunFailed if the checker cannot be started."""
        outcomes: list[Outcome] = [Outcome()] * len(jobs)
        with self._lock:
            if self._closed:
                raise RunFailed("answers were handed to a task's verifier after it was closed")
            todo = _SharedIterator(range(len(jobs)))
            active = min(len(self._workers), len(jobs))

            def work(slot: int) -> None:
                for i in todo:
                    outcomes[i] = self._check_one(slot, jobs[i])

            if active == 1:
                work(0)
            elif active > 1:
                with ThreadPoolExecutor(active, thread_name_prefix="check") as threads:
                    try:
                        list(threads.map(work, range(active)))
                    except BaseException:  # an interrupt: the threads finish the check at hand, not all that are left
                        todo.stop()
                        raise
        return outcomes

    def close(self) -> None:
        """Ends the workers. May be called again."""
        with self._lock:
            self._closed = True
            for slot in range(len(self._workers)):
                self._discard(slot)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [w.process.pid for w in self._workers if w is not None and w.process.poll() is None]

    def _check_one(self, slot: int, job: Any) -> Outcome:
        for _ in range(_ATTEMPTS):
            worker = self._workers[slot] or self._start(slot)
            try:
                worker.wait_until_ready()
                reply = worker.ask(job, self.timeout)
            except TimeoutError:
                self._discard(slot)
                return Outcome(fault="timeout")
            except EOFError:
                self._discard(slot)
                continue
            except BaseException:  # an interrupt: the worker's next line would answer the wrong question
                self._discard(slot)
                raise
            if "error" in reply:
                return Outcome(fault="raised", detail=reply["error"])
            return Outcome(value=reply["result"])
        return Outcome(fault="died")

    def _start(self, slot: int) -> _Worker:
        try:
            worker = self._workers[slot] = _Worker(self._setup)
        except OSError as error:
            raise RunFailed(f"no process could be started to check answers: {error.strerror}") from error
        return worker

    def _discard(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.stop()


class _SharedIterator:
    """Hands the items of one sequence to several threads, each item once."""

    def __init__(self, items: Sequence[int]) -> None:
        self._iterator = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._iterator)

    def stop(self) -> None:
        """Hands out no more."""
        with self._lock:
            self._iterator = iter(())


class _Worker:
    """One child process. A thread reads its replies, so that waiting for them can time out on every platform."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._checker = setup["checker"]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _end)
        environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment | {"MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"},
            start_new_session=os.name == "posix",  # Ctrl-C in the terminal is not for it
        )
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_read_lines, args=(self.process.stdout, self._replies), daemon=True)
        self._reader.start()
        self._finalizer = weakref.finalize(self, _end, self.process, self._reader, self._errors, os.getpid())
        self._ready = False
        with contextlib.suppress(EOFError):  # a child that is dead already is reported by wait_until_ready
            self._write(setup)

    def wait_until_ready(self) -> None:
        """Waits for the verifier's imports. Raises RunFailed if they fail."""
        if self._ready:
            return
        try:
            reply = self._read(_STARTUP_SECONDS)
        except TimeoutError:
            raise RunFailed(f"the checker {self._checker} did not start within {_STARTUP_SECONDS:g} s") from None
        except EOFError:
            self.process.wait()
            if self.process.returncode < 0:
                raise  # killed from outside: worth another try
            raise RunFailed(f"the checker {self._checker} ended while starting: {self._last_error()}") from None
        if "error" in reply:
            raise RunFailed(f"the checker {self._checker} could not start: {reply['error']}")
        self._ready = True

    def ask(self, job: Any, timeout: float) -> dict[str, Any]:
        """The reply to one job. Raises TimeoutError (seconds) or, if the process ended, EOFError."""
        self._write(job)
        return self._read(timeout)

    def stop(self) -> None:
        """Kills the process, waits for its end and frees the pipes."""
        self._finalizer()

    def _write(self, message: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise EOFError from error

    def _read(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if line is None or not line.endswith(b"\n"):
            raise EOFError
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self.process.returncode}"


def _read_lines(stream: IO[bytes], replies: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(ValueError, OSError):  # the pipe was closed under us: the worker was stopped
        for line in stream:
            replies.put(line)
    replies.put(None)


def _end(process: subprocess.Popen[bytes], reader: threading.Thread, errors: IO[bytes], owner: int) -> None:
    """Runs when the worker is stopped, collected, or the interpreter ends; in the process that started it only."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    reader.join(timeout=5)
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(OSError):  # unsent bytes for a process that is dead
                stream.close()
