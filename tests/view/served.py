"""The real server in a thread of the test's process, and raw requests to it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dinghai.view.server.app import Live
from dinghai.view.server.guard import door
from dinghai.view.server.runs import Runs
from dinghai.view.server.watch import Server, take_port


class Served:
    """A server in a thread of this process."""

    def __init__(self, folders: Sequence[Path], port: int = 0, token: str | None = None) -> None:
        listening = take_port("127.0.0.1", port)
        self.port = int(listening.getsockname()[1])
        self._server = Server(Live(Runs(folders), door("127.0.0.1", token).on_port(self.port)))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self.port}/"
        while not self._server.started:
            time.sleep(0.01)

    def send(self, request: bytes, wait: float = 10.0) -> bytes:
        """Send raw bytes and read until the server closes the connection, or has been silent for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            answer = b""
            try:
                connection.sendall(request)
                while more := connection.recv(65_536):
                    answer += more
            except (TimeoutError, ConnectionError):
                pass  # a server that has answered does not read the rest of what was sent, which resets the connection
            return answer

    def stop(self) -> None:
        self._server.handle_exit(signal.SIGTERM, None)
        self._thread.join(10)
        assert not self._thread.is_alive()
