"""Makes answers in threads of their own, each once for all who ask for it, and keeps the last ones.

Reading a step of a million tokens takes a good part of a second, and the event loop must meanwhile go on serving. So
the work is done by a few threads; who asks for what is being made waits for the same; and there is an end to the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from dinghai.files import nonfinite_as_text

THREADS = 2  # at work at once; each may hold the columns of a step in memory
WAITING_AT_MOST = 64
BYTES_KEPT = 48 * 1024 * 1024
_WORTH_GZIP = 1_000  # bytes
_GZIP_LEVEL = 5  # nearly as small as 9 for JSON, in a third of the time

Work = Callable[[], Any]  # gives what becomes JSON
_Task = tuple["asyncio.Future[Answer]", Callable[[], "Answer"]]


class Busy(Exception):
    """So much waits already, or the server is about to end, that the request is turned away."""


@dataclass(frozen=True)
class Answer:
    """A body, and the same compressed where that is worth it."""

    body: bytes
    gzipped: bytes | None

    @property
    def size(self) -> int:
        return len(self.body) + len(self.gzipped or b"")


def as_answer(data: Any) -> Answer:
    """JSON as UTF-8; numbers that are not finite by their names, as everywhere."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:  # rare, and the search for such numbers takes longer than the writing
        text = json.dumps(nonfinite_as_text(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return compressed(text.encode("utf-8", "backslashreplace"))


def compressed(body: bytes) -> Answer:
    # mtime: the same body gives the same bytes.
    return Answer(body, gzip.compress(body, _GZIP_LEVEL, mtime=0) if len(body) >= _WORTH_GZIP else None)


class Answers:
    """What was answered last, and what is being made. All methods are called in the event loop's thread.

    Args:
        bytes_kept: of answers; the ones that were asked for longest ago go first.
    """

    def __init__(self, threads: int = THREADS, bytes_kept: int = BYTES_KEPT) -> None:
        self._workers = _Workers(threads)
        self._bytes_kept = bytes_kept
        self._kept: OrderedDict[Hashable, Answer] = OrderedDict()
        self._size = 0
        self._being_made: dict[Hashable, asyncio.Future[Answer]] = {}

    async def get(self, key: Hashable, work: Work) -> Answer:
        """The answer for `key`, made by `work` in a thread where it is not there yet.

        Args:
            key: names the content: what is asked for, and the state of the files that it is made from.

        Raises:
            Busy: too much waits.
            Exception: what `work` raised. It is not kept: the next one to ask tries again.
        """
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        making = self._being_made.get(key)
        if making is None:
            making = self._workers.start(lambda: as_answer(work()))
            self._being_made[key] = making
            making.add_done_callback(lambda done: self._made(key, done))
        # Shielded: that one reader went away must not take the answer from the others.
        return await asyncio.shield(making)

    def close(self) -> None:
        """Turn away all who wait, and let the threads end, each after what it is at. Nothing is waited for."""
        for making in list(self._being_made.values()):
            if not making.done():
                making.set_exception(Busy())
        self._workers.close()

    def _made(self, key: Hashable, done: asyncio.Future[Answer]) -> None:
        del self._being_made[key]
        if done.cancelled() or done.exception() is not None:
            return
        answer = done.result()
        if answer.size > self._bytes_kept // 2:
            return
        self._kept[key] = answer
        self._size += answer.size
        while self._size > self._bytes_kept:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size


class _Workers:
    """Threads that end with the program, whatever they are at: Ctrl-C must not wait for a million tokens.

    (An executor of the standard library would be waited for.)
    """

    def __init__(self, threads: int) -> None:
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"answers-{number}", daemon=True).start()

    def start(self, work: Callable[[], Answer]) -> asyncio.Future[Answer]:
        if self._waiting.qsize() >= WAITING_AT_MOST:
            raise Busy
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put((future, work))
        return future

    def close(self) -> None:
        for _ in range(self._threads):
            self._waiting.put(None)
        self._threads = 0

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            _do(*task)
            del task  # nor what it holds, until the next piece of work comes


def _do(future: asyncio.Future[Answer], work: Callable[[], Answer]) -> None:
    result: Answer | None = None
    error: BaseException | None = None
    try:
        result = work()
    except BaseException as raised:
        error = raised
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
        future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Answer], result: Answer | None, error: BaseException | None) -> None:
    if future.done():  # nobody waits for it any more
        return
    if error is not None:
        future.set_exception(error)
    elif result is not None:
        future.set_result(result)
