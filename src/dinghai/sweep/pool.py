"""Trains trials in processes of their own, several at a time; one that dies fails its trial alone.

The processes are plain children that talk JSON over pipes: no pickle, and unlike multiprocessing's they do not import
the user's main script. They stay for trial after trial, since their imports take as long as a short run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, Any

from dinghai.errors import RunFailed
from dinghai.sweep.perform import Job, Report

_BOOTSTRAP = (
    "import json, sys; setup = json.loads(sys.stdin.buffer.readline()); sys.path[:] = setup['path']; "
    "from dinghai.sweep.worker import serve; serve(setup)"
)
_ATTEMPTS = 2  # at a trial whose process died, since the death may not have been the trial's doing
_STARTS = 3  # of processes in a row that may end before they are ready


def perform_in_processes(
    jobs: Sequence[Job],
    workers: int,
    allowed_rewards: Collection[str],
    rule_files: Sequence[str],
    ended: Callable[[Report], None],
    keep_open: Collection[int] = (),
) -> None:
    """Trains the jobs, and calls `ended` with the report of each. No process outlives the call.

    workers:   how many processes at most
    keep_open: file descriptors that the processes hold as long as they live

    Raises RunFailed if the processes cannot be started.
    """
    setup = {
        "path": [os.path.abspath(entry) for entry in sys.path],
        "allowed_rewards": sorted(allowed_rewards),
        "rule_files": [os.path.abspath(os.path.expanduser(file)) for file in rule_files],
    }
    with contextlib.closing(_Pool(list(jobs), workers, setup, keep_open)) as pool:
        for report in pool.reports():
            ended(report)


class _Pool:
    """Hands jobs to workers. All decisions are made by the thread that asks for the reports."""

    def __init__(self, jobs: list[Job], workers: int, setup: dict[str, Any], keep_open: Collection[int]) -> None:
        self._waiting = jobs
        self._left = len(jobs)
        self._attempts = {job.name: 0 for job in jobs}
        self._setup = setup
        self._keep_open = keep_open
        self._messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._failed_starts = 0
        self._workers: list[_Worker] = []
        try:
            for _ in range(min(workers, len(jobs))):
                self._start()
        except BaseException:
            self.close()
            raise

    def reports(self) -> Iterator[Report]:
        while self._left:
            worker, message = self._next_message()
            if message is None:
                report = self._died(worker)
            elif "ready" in message:
                worker.is_ready, self._failed_starts, report = True, 0, None
            else:
                worker.job, report = None, Report(**message)
            if message is not None and self._waiting:
                self._hand_out(worker)
            if report is not None:
                self._left -= 1
                yield report

    def close(self) -> None:
        """Ends the processes at once; a run is resumable at every moment."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _next_message(self) -> tuple[_Worker, dict[str, Any] | None]:
        while True:  # waits in pieces: where the system has no signals, Ctrl-C is only noticed in between
            with contextlib.suppress(queue.Empty):
                return self._messages.get(timeout=1.0)

    def _start(self) -> None:
        try:
            self._workers.append(_Worker(self._setup, self._messages, self._keep_open))
        except OSError as error:
            raise RunFailed(f"no process could be started to train a trial: {error.strerror}") from error

    def _hand_out(self, worker: _Worker) -> None:
        job = self._waiting.pop(0)
        self._attempts[job.name] += 1
        worker.take(job)

    def _died(self, worker: _Worker) -> Report | None:
        """Replaces a worker that has ended; the report of its trial, where that is not tried again."""
        (cause, last_words), job = worker.end(), worker.job
        self._workers.remove(worker)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise RunFailed(f"the processes that train trials end while they start ({cause}): {last_words}")
        report = None
        if job is not None and self._attempts[job.name] < _ATTEMPTS:
            self._waiting.insert(0, job)
        elif job is not None:
            report = Report(
                job.name, f"its process died {_ATTEMPTS} times, {cause}", time.perf_counter() - worker.since
            )
        if self._waiting:
            self._start()
        return report


class _Worker:
    """One child process, and a thread that reads what it says."""

    def __init__(
        self,
        setup: dict[str, Any],
        messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]],
        keep_open: Collection[int],
    ) -> None:
        self.job: Job | None = None
        self.since = time.perf_counter()  # when the job was taken
        self.is_ready = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | os.environ,
            start_new_session=os.name == "posix",  # Ctrl-C in the terminal is not for it
            pass_fds=tuple(keep_open),
        )
        self._thread = threading.Thread(target=self._read, args=(messages,), daemon=True)
        self._thread.start()
        self._write(setup)

    def take(self, job: Job) -> None:
        self.job, self.since = job, time.perf_counter()
        self._write(dataclasses.asdict(job))

    def end(self) -> tuple[str, str]:
        """Kills the process if it lives, waits for it and frees the pipes.

        (how it ended, in words; the last line of what it said outside a trial)
        """
        self.process.kill()
        code = self.process.wait()
        self._thread.join(timeout=5)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(OSError):  # unsent bytes for a process that is dead
                stream.close()
        return _cause(code), lines[-1][:300] if lines else "it said nothing"

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a process that is dead is noticed by its reader
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def _read(self, messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # the pipe was closed under us: the worker was ended
            for line in self.process.stdout:
                if line.endswith(b"\n"):
                    messages.put((self, json.loads(line)))
        messages.put((self, None))


def _cause(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name} (killed from outside; often the memory was full)" if name == "SIGKILL" else name
