"""Writes the trace beside the training: encoding and waiting for the disk take a step's time from nobody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from dinghai.trace.writer import Samples, TraceWriter

JOBS_AT_MOST = 16
"""Calls that wait to be done, some two steps' worth. Beyond that the training waits: memory must not grow with a slow
disk."""


class BackgroundWriter:
    """Does what a `TraceWriter` does, in the order it is told, in one thread of its own.

    What is handed over must not be changed afterwards. An error surfaces at the next call, whichever it is, and from
    then on nothing more is written. Within `with`, the end waits until everything is written.

    Raises:
        RunFailed: from any method, what an earlier one ran into: the disk is full or may not be written to.
    """

    def __init__(self, writer: TraceWriter) -> None:
        self.writer = writer
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(JOBS_AT_MOST)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin_step(self, step: int, samples: Samples) -> None:
        """As `TraceWriter.begin_step`."""
        self._put(partial(self.writer.begin_step, step, samples))

    def add_update(self, update: int, columns: Mapping[str, Any], sample: Any) -> None:
        """As `TraceWriter.add_update`."""
        self._put(partial(self.writer.add_update, update, columns, sample))

    def finish_step(self) -> None:
        """As `TraceWriter.finish_step`; the step is complete on disk some time later, after `wait` at the latest."""
        self._put(self.writer.finish_step)

    def wait(self) -> None:
        """Returns when everything that was handed over is on the disk, as it must be before a checkpoint says so."""
        self._jobs.join()
        self._raise()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        if error is None:
            self._raise()
        elif self._error is not None and self._error is not error:
            error.add_note(f"before that: {self._error}")

    def _put(self, job: Callable[[], None]) -> None:
        self._raise()
        if self._thread is None:  # not before there is something to do: most of a run's failures come earlier
            self._thread = threading.Thread(target=self._work, name="trace", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:  # after an error a step would have a hole
                    job()
            except BaseException as error:  # of any kind: the training must hear of it
                self._error = error
            finally:
                del job  # its arrays, while the next one is waited for
                self._jobs.task_done()
        self._jobs.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
