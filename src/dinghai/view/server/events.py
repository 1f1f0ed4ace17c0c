"""Tells every open page when a run has grown, as server-sent events.

One task looks at the disk about once a second while anybody listens. A page that is slow to read misses states in
between and never the last: it is told what is, not what happened.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from dinghai.view.server.answers import Busy
from dinghai.view.server.runs import Runs

LOOK_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0  # a page that hears nothing for longer takes the connection as lost
LISTENERS_AT_MOST = 64
_SHARE_OF_TIME = 0.05  # at most, for looking by itself: on a slow disk or with many runs it looks less often


class Events:
    """Looks at the runs and wakes the streams. All methods are called in the event loop's thread."""

    def __init__(self, runs: Runs, look_seconds: float = LOOK_SECONDS) -> None:
        self._runs = runs
        self._look_seconds = look_seconds
        self._looked = -float("inf")  # monotonic seconds, when the last look began
        self._took = 0.0  # seconds, the last look
        self._looking = asyncio.Lock()
        self._news = asyncio.Event()  # set, and replaced by a new one, at each change
        self._listeners = 0
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    def close(self) -> None:
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        self._wake()

    async def fresh(self) -> None:
        """Look at the disk, unless that was done a moment ago."""
        async with self._looking:
            begun = time.monotonic()
            if begun - self._looked < self._look_seconds:
                return
            self._looked = begun
            changed = await asyncio.to_thread(self._runs.look)
            self._took = time.monotonic() - begun
        if changed:
            self._wake()

    def stream(self) -> AsyncIterator[str]:
        """The state of all runs now, at each change, and at least every `HEARTBEAT_SECONDS`.

        Raises:
            Busy: too many listen already.
        """
        if self._listeners >= LISTENERS_AT_MOST:
            raise Busy
        return self._stream()

    async def _stream(self) -> AsyncIterator[str]:
        self._listeners += 1
        try:
            await self.fresh()
            while not self._closed:
                news = self._news
                yield f"event: runs\ndata: {json.dumps(self._runs.heads())}\n\n"
                try:
                    await asyncio.wait_for(news.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    continue
        finally:
            self._listeners -= 1

    async def _watch(self) -> None:
        while True:
            if self._listeners:
                await self.fresh()
            await asyncio.sleep(max(0.05, self._look_seconds, self._took / _SHARE_OF_TIME))

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
