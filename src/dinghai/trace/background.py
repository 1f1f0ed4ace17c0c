"""Writes the trace beside the training: encoding and waiting for the disk take a step's time from nobody."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from dinghai.trace.writer import Samples, TraceWriter

ROWS_TOGETHER = 200_000
"""Tokens that are gathered before they are handed over, unless the step ends before. A thread that is woken for each
small update of a step takes half as long again, and the training feels it: both need the interpreter's lock."""

PARCELS_AT_MOST = 4
"""Handed over and not yet written. Beyond that the training waits: memory must not grow with a slow disk."""

Job = Callable[[], None]


class BackgroundWriter:
    """Does what a `TraceWriter` does, in the order it is told, in one thread of its own.

    What is handed over must not be changed afterwards. An error surfaces at the next call, whichever it is, and from
    then on nothing more is written. Within `with`, the end waits until everything is written.

    Raises:
        RunFailed: from any method, what an earlier one ran into: the disk is full or may not be written to.
    """

    def __init__(self, writer: TraceWriter) -> None:
        self.writer = writer
        self._gathered: list[Job] = []
        self._rows = 0  # of what is gathered
        self._parcels: queue.Queue[list[Job] | None] = queue.Queue(PARCELS_AT_MOST)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def begin_step(self, step: int, samples: Samples) -> None:
        """As `TraceWriter.begin_step`."""
        self._gather(partial(self.writer.begin_step, step, samples))

    def add_update(self, update: int, columns: Mapping[str, Any], sample: Any) -> None:
        """As `TraceWriter.add_update`."""
        self._gather(partial(self.writer.add_update, update, columns, sample), len(sample))
        if self._rows >= ROWS_TOGETHER:
            self._hand_over()

    def finish_step(self) -> None:
        """As `TraceWriter.finish_step`; the step is complete on disk some time later, after `wait` at the latest."""
        self._gather(self.writer.finish_step)
        self._hand_over()

    def wait(self) -> None:
        """Returns when everything up to here is on the disk, as it must be before a checkpoint says so."""
        self._hand_over()
        self._parcels.join()
        self._raise()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_over()
        if self._thread is not None:
            self._parcels.put(None)
            self._thread.join()
            self._thread = None
        if error is None:
            self._raise()
        elif self._error is not None and self._error is not error:
            error.add_note(f"before that: {self._error}")

    def _gather(self, job: Job, rows: int = 0) -> None:
        self._raise()
        self._gathered.append(job)
        self._rows += rows

    def _hand_over(self) -> None:
        if not self._gathered:
            return
        if self._thread is None:  # not before there is something to do: most of a run's failures come earlier
            self._thread = threading.Thread(target=self._work, name="trace", daemon=True)
            self._thread.start()
        self._parcels.put(self._gathered)
        self._gathered, self._rows = [], 0

    def _work(self) -> None:
        while (jobs := self._parcels.get()) is not None:
            try:
                while jobs and self._error is None:  # after an error a step would have a hole
                    jobs.pop(0)()
            except BaseException as error:  # of any kind: the training must hear of it
                self._error = error
            finally:
                del jobs  # and their arrays, while the next parcel is waited for
                self._parcels.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
