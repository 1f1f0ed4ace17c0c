"""The live page's addresses: its files, and what they ask for. Every request has passed the guard."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dinghai.errors import DinghaiError, InputError
from dinghai.view.server.answers import Answer, Answers, Busy, as_answer
from dinghai.view.server.events import LOOK_SECONDS, Events
from dinghai.view.server.guard import App, Door, Guard
from dinghai.view.server.pages import Page, load_pages
from dinghai.view.server.runs import Gone, Runs, WatchedRun

_NUMBER = re.compile(r"[0-9]{1,12}")
_NO_STORE = {"cache-control": "no-store"}

Handler = Callable[[Request], Awaitable[Response]]


class Live:
    """The server without its socket: the ASGI app, and the switch that ends what is under way.

    Args:
        door: who may ask; its port must be set.
        look_seconds: at most so often the disk is looked at.
    """

    def __init__(self, runs: Runs, door: Door, look_seconds: float = LOOK_SECONDS) -> None:
        self.events = Events(runs, look_seconds)
        self._runs = runs
        self._answers = Answers()
        self._pages = load_pages()
        self._loop: asyncio.AbstractEventLoop | None = None
        app = Starlette(routes=self._routes(), lifespan=self._lifespan, exception_handlers=_HANDLERS)
        app.router.redirect_slashes = False
        self.app: App = Guard(app, door)

    def _routes(self) -> list[Route]:
        api: dict[str, Handler] = {
            "/api/runs": self._list,
            "/api/events": self._stream,
            "/api/runs/{run}/overview": self._overview,
            "/api/runs/{run}/traced": self._traced,
            "/api/runs/{run}/census": self._census,
            "/api/runs/{run}/groups": self._groups,
            "/api/runs/{run}/group": self._group,
            "/api/runs/{run}/replay": self._replay,
            "/api/runs/{run}/replay_group": self._replay_group,
        }
        files = [Route(path, _serve(page)) for path, page in self._pages.items()]
        return [*files, *(Route(path, handler) for path, handler in api.items())]

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.events.start()
        yield
        self._close()

    def close_soon(self) -> None:
        """End all streams and turn away who waits; may be called from a signal handler."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self.events.close()
        self._answers.close()

    async def _list(self, request: Request) -> Response:
        _numbers(request)
        await self.events.fresh()
        return _json(request, as_answer(self._runs.heads()))

    async def _stream(self, request: Request) -> Response:
        _numbers(request)
        kind = "text/event-stream"
        if request.method == "HEAD":  # a stream without a body would still never end
            return Response(headers=_NO_STORE, media_type=kind)
        return StreamingResponse(self.events.stream(), headers=_NO_STORE, media_type=kind)

    async def _overview(self, request: Request) -> Response:
        run = await self._run(request)
        _numbers(request)
        return await self._answer(request, run, run.overview_stamp(), run.overview)

    async def _traced(self, request: Request) -> Response:
        run = await self._run(request)
        _numbers(request)
        return await self._answer(request, run, ("traced", *run.trace_stamp()), run.traced)

    async def _census(self, request: Request) -> Response:
        run = await self._run(request)
        step, update = _numbers(request, optional=("step", "update"))
        stamp = run.trace_stamp() if step is None else run.step_stamp(step)
        return await self._answer(request, run, ("census", update, *stamp), lambda: run.census(step, update))

    async def _groups(self, request: Request) -> Response:
        run = await self._run(request)
        (step,) = _needed(_numbers(request, needed=("step",)))
        return await self._answer(request, run, ("groups", *run.step_stamp(step)), lambda: run.groups(step))

    async def _group(self, request: Request) -> Response:
        run = await self._run(request)
        step, group = _needed(_numbers(request, needed=("step", "group")))
        key = ("group", group, *run.step_stamp(step))
        return await self._answer(request, run, key, lambda: run.group(step, group))

    async def _replay(self, request: Request) -> Response:
        run = await self._run(request)
        _numbers(request)
        return await self._answer(request, run, ("replay", *run.trace_stamp()), run.replay)

    async def _replay_group(self, request: Request) -> Response:
        run = await self._run(request)
        names = ("step", "group", "update", "recorded")
        step, group, update, recorded = _needed(_numbers(request, needed=names))
        key = ("replay group", group, update, recorded, *run.step_stamp(step))
        return await self._answer(request, run, key, lambda: run.replay_group(step, group, update, recorded))

    async def _run(self, request: Request) -> WatchedRun:
        await self.events.fresh()
        number = request.path_params["run"]
        if not _NUMBER.fullmatch(number):
            raise HTTPException(404, "runs are asked for by their numbers; /api/runs lists them")
        return self._runs.run(int(number))

    async def _answer(
        self, request: Request, run: WatchedRun, key: tuple[object, ...], work: Callable[[], object]
    ) -> Response:
        try:
            return _json(request, await self._answers.get(key, work))
        except DinghaiError as error:
            status = 404 if isinstance(error, Gone) else 409 if isinstance(error, InputError) else 500
            raise HTTPException(status, run.without_path(str(error))) from error


def _serve(page: Page) -> Handler:
    async def serve(request: Request) -> Response:
        headers = {"cache-control": "no-cache", "etag": page.etag}  # kept by the browser, and asked about each time
        if page.etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return _compressed(request, page.answer, page.kind, headers)

    return serve


def _json(request: Request, answer: Answer) -> Response:
    return _compressed(request, answer, "application/json", _NO_STORE)


def _compressed(request: Request, answer: Answer, kind: str, headers: dict[str, str]) -> Response:
    """The answer, gzipped where the browser takes that."""
    headers = {**headers, "vary": "accept-encoding"}
    accepted = [part.partition(";") for part in request.headers.get("accept-encoding", "").split(",")]
    takes_gzip = any(name.strip() == "gzip" and value.strip() != "q=0" for name, _, value in accepted)
    if answer.gzipped is None or not takes_gzip:
        return Response(answer.body, media_type=kind, headers=headers)
    return Response(answer.gzipped, media_type=kind, headers={**headers, "content-encoding": "gzip"})


def _numbers(request: Request, needed: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> list[int | None]:
    """The numbers of the query in the order of the names, None for an optional one that is absent."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    known = [*needed, *optional]
    if len(set(names)) < len(names) or not set(names) <= set(known) or not set(needed) <= set(names):
        raise HTTPException(400, f"the query of this address has {' and '.join(known) or 'nothing'}, each once")
    for name, value in given:
        if not _NUMBER.fullmatch(value):
            raise HTTPException(400, f"{name} must be a whole number of at most 12 digits")
    values = dict(given)
    return [int(values[name]) if name in values else None for name in known]


def _needed(numbers: list[int | None]) -> list[int]:
    return [number for number in numbers if number is not None]


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _gone(_: Request, error: Exception) -> Response:
    return _error(404, str(error))


async def _busy(_: Request, error: Exception) -> Response:
    return _error(503, "too much is being worked on; try again in a moment", {"retry-after": "1"})


async def _failed(_: Request, error: Exception) -> Response:
    # What it was is on the terminal (the error goes on to uvicorn, which writes it there), and not in the answer.
    return _error(500, f"this is a bug in Dinghai ({type(error).__name__}); the terminal of `dinghai watch` says more")


_HANDLERS = {HTTPException: _refused, Gone: _gone, Busy: _busy, Exception: _failed}


def _error(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    body = as_answer({"error": why}).body
    return Response(body, status, headers={**_NO_STORE, **(headers or {})}, media_type="application/json")
