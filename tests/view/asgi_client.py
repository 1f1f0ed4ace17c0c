"""Asks an ASGI app as a browser would, with whatever headers and target a test wants to send, and no network."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

Headers = Sequence[tuple[str, str]]
HOST = ("host", "127.0.0.1:8712")


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    sent: bytes  # as it went over the wire

    @property
    def body(self) -> bytes:
        return gzip.decompress(self.sent) if self.headers.get("content-encoding") == "gzip" else self.sent

    def json(self) -> Any:
        return json.loads(self.body)


def scope_of(target: str, headers: Headers = (HOST,), method: str = "GET") -> dict[str, Any]:
    """What uvicorn makes of a request's first line and headers."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "root_path": "",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8712),
        "state": {},
    }


async def request(app: Any, target: str, headers: Headers = (HOST,), method: str = "GET") -> Answered:
    """One request and its whole answer."""
    messages: list[dict[str, Any]] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.sleep(60)  # the client waits for the answer
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await app(scope_of(target, headers, method), receive, send)
    start = messages[0]
    found = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Answered(start["status"], found, b"".join(m.get("body", b"") for m in messages[1:]))


class Lifespan:
    """`async with Lifespan(app):` starts the app and ends it, as a server does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __aenter__(self) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._inbox.get, self._outbox.put))
        await self._say("startup")

    async def __aexit__(self, *_: object) -> None:
        await self._say("shutdown")
        await self._task

    async def _say(self, what: str) -> None:
        await self._inbox.put({"type": f"lifespan.{what}"})
        assert (await self._outbox.get())["type"] == f"lifespan.{what}.complete"
