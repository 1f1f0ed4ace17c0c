"""`dinghai watch`: takes a port, says where the page is, and serves it until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from dinghai.errors import InputError
from dinghai.view.server.app import Live
from dinghai.view.server.guard import Door, door
from dinghai.view.server.runs import Runs

PORT = 8712
PORTS_TRIED = 20  # from the default one on, where the user has named none
CONNECTIONS_AT_MOST = 256
_LONGEST_HEADERS = 16 * 1024  # bytes of a request's first line and headers
_SHUTDOWN_SECONDS = 1  # for answers that are on their way when the server is stopped


def serve(
    folders: Sequence[Path], host: str = "127.0.0.1", port: int | None = None, token: str | None = None,
    open_browser: bool = False,
) -> None:  # fmt: skip
    """Serve the page of some runs until it is interrupted.

    Args:
        folders: each of a run, or of a folder that holds runs.
        host: address or name to listen on; another than this machine's own needs a token.
        port: None for the default one or the next that is free; 0 for any.
        token: what a reader must know.

    Raises:
        InputError: the address or port cannot be had, or others could read the page without a token.
    """
    entrance = door(host, token)
    listening = take_port(entrance.host, port)
    with contextlib.closing(listening):
        entrance = entrance.on_port(listening.getsockname()[1])
        runs = Runs(folders)
        runs.look()
        for line in opening_lines(entrance, runs):
            print(line, flush=True)
        server = Server(Live(runs, entrance), opens=entrance.address_with_token if open_browser else None)
        # Ctrl-C is how this ends, and not an interruption; uvicorn raises the signal again when it has closed.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn, which ends the streams of open pages when it is told to stop.

    Args:
        opens: an address for the browser, once the server answers.
    """

    def __init__(self, live: Live, opens: str | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                live.app,
                http="h11",  # strict about what a request is, and bounded in what it may bring
                h11_max_incomplete_event_size=_LONGEST_HEADERS,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_level="error",
                access_log=False,  # its lines would have the token
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS_AT_MOST,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        self._live = live
        self._opens = opens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._opens is not None:  # in a thread: it may wait for the browser
            threading.Thread(target=webbrowser.open, args=[self._opens], daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._live.close_soon()
        super().handle_exit(sig, frame)


def take_port(host: str, port: int | None) -> socket.socket:
    """A socket that listens on the port; without one on the default port or the next free one.

    Raises:
        InputError: the port is taken or may not be had, or the host is no address of this machine.
    """
    if port is not None and not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port: they go from 1 to 65535, and 0 takes any that is free")
    ports = range(PORT, PORT + PORTS_TRIED) if port is None else [port]
    for number in ports:
        try:
            return _listen(host, number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InputError(_cannot_listen(host, number, error)) from error
    if port is None:
        raise InputError(f"the ports {ports[0]} to {ports[-1]} are all taken; name another with --port, or 0 for any")
    raise InputError(f"port {port} is taken; leave --port out for the next free one, or name another")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # else a port rests a minute after its last use; elsewhere it means another thing
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # `::` is not meant to be 0.0.0.0 too
        listening.bind(address)
        listening.listen(128)  # at once: another server that tries this port must find it taken
    except BaseException:
        listening.close()
        raise
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine; leave it out, or use one that `hostname -I` lists"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} may not be used by you: ports below 1024 are the system's; name another with --port"
    return f"cannot listen on {host}, port {port}: {error.strerror or error}"


def opening_lines(entrance: Door, runs: Runs) -> list[str]:
    """Where the page is, what it shows, and how it ends. The token is not said: terminals are kept and shown."""
    names = [str(run["name"]) for run in runs.heads()["runs"]]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    lines = [f"{shown or 'no run yet'}: {entrance.address}"]
    if entrance.token is not None:
        lines[0] += "?token=… (the token that you gave)"
    if entrance.is_wildcard:
        lines.append("it listens on all addresses of this machine, and is known by those and by no name but localhost")
    lines.append("the page grows with its runs; Ctrl-C ends it and lets them run")
    return lines
