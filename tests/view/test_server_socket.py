"""The real server on a real socket: what no client library would send, what a flood gets, and that Ctrl-C ends it.

Run: pytest tests/view/test_server_socket.py
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served
from traversals import SECRET, absolute, up_to

from dinghai.errors import InputError
from dinghai.view.server import watch
from dinghai.view.server.guard import door
from dinghai.view.server.runs import Runs
from dinghai.view.server.watch import PORT, opening_lines, take_port

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def server(run_folder: Path) -> Iterator[Served]:
    (run_folder.parent / "secret.txt").write_text(SECRET)
    served = Served([run_folder])
    yield served
    served.stop()


def http(target: str, *headers: str, method: str = "GET", version: str = "1.1", host: str | None = "127.0.0.1") -> str:
    """A request; `{port}` is put in later."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}:{{port}}")
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""])


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer.split()[1])


# What is sent -> the status, on the wire.
RAW: list[tuple[str, str, int]] = [
    ("a page", http("/"), 200),
    ("by name", http("/", host="localhost"), 200),
    ("only the head", http("/", method="HEAD"), 200),
    ("HTTP/1.0 with a Host", http("/", version="1.0"), 200),
    ("HTTP/1.0 without a Host", http("/", version="1.0", host=None), 400),
    ("no Host", http("/", host=None), 400),
    ("foreign Host", http("/", host="evil.example"), 400),
    ("two Hosts, the good one first", http("/", "Host: evil.example"), 400),
    ("two Hosts, the good one last", http("/", "Host: 127.0.0.1:{port}", host="evil.example"), 400),
    ("two equal Hosts", http("/", "Host: 127.0.0.1:{port}"), 400),
    ("HTTP/1.0 with two Hosts", http("/", "Host: evil.example", version="1.0"), 400),
    (
        "Host folded over lines",
        "GET / HTTP/1.1\r\nHost: evil.example,\r\n 127.0.0.1:{port}\r\nConnection: close\r\n\r\n",
        400,
    ),
    ("absolute target, foreign", http("http://evil.example/"), 400),
    ("absolute target, ours", http("http://127.0.0.1:{port}/"), 400),
    ("absolute target, foreign Host", http("http://127.0.0.1:{port}/", host="evil.example"), 400),
    ("target of a proxy", http("evil.example:80", method="CONNECT"), 405),
    ("target *", http("*", method="OPTIONS"), 405),
    ("target * to read", http("*"), 400),
    ("POST with a body", http("/api/runs", "Content-Length: 2", method="POST") + "{{}}", 405),
    ("DELETE", http("/api/runs/0", method="DELETE"), 405),
    ("an invented method", http("/", method="SHOW"), 405),
    ("GET with a body", http("/", "Content-Length: 5") + "hello", 400),
    ("GET with an empty body", http("/", "Content-Length: 0"), 200),
    ("two lengths", http("/", "Content-Length: 5", "Content-Length: 6") + "hello", 400),
    ("length and chunks", http("/", "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\n", 400),
    ("an odd transfer coding", http("/", "Transfer-Encoding: gzip"), 400),
    ("chunks", http("/", "Transfer-Encoding: chunked") + "0\r\n\r\n", 400),
    ("HTTP/2.0", http("/", version="2.0"), 505),
    ("HTTP/0.9", "GET /\r\n\r\n", 400),
    ("no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ("line end in the target", "GET /\rx HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n", 400),
    ("space before the colon", http("/", "Origin : http://evil.example"), 400),
    ("foreign Origin", http("/", "Origin: http://evil.example"), 403),
    ("foreign Origin in odd case", http("/", "oRiGiN: http://evil.example"), 403),
    ("another site", http("/", "Sec-Fetch-Site: cross-site"), 403),
    ("another port", http("/", "Sec-Fetch-Site: same-site"), 403),
    ("a web socket", http("/", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"), 200),
    ("a long line", http("/" + "x" * 70_000), 414),
    ("a long header", http("/", "X-Bomb: " + "x" * 70_000), 431),
    ("a header without end", http("/", "X-Bomb: " + "x" * 3_000_000), 400),
    ("many headers", http("/", *(f"X-{n}: bomb" for n in range(1_000))), 431),
    ("headers without end", http("/", *(f"X-{n}: bomb" for n in range(100_000))), 400),
    ("a long query", http("/api/runs?" + "x" * 2_000), 414),
]


@pytest.mark.parametrize("request_text, status", [case[1:] for case in RAW], ids=[case[0] for case in RAW])
def test_who_is_answered_on_the_wire(server: Served, request_text: str, status: int) -> None:
    answer = server.send(request_text.format(port=server.port).encode("latin-1"))
    cut_off = not answer and len(request_text) > 1_000_000  # the connection may be reset before the answer is read
    assert cut_off or status_of(answer) == status
    assert b"dinghai.view" not in answer


def test_there_are_enough_of_them() -> None:
    assert len(RAW) >= 30


def test_no_spelling_of_a_path_leads_out_on_the_wire(server: Served) -> None:
    spelled = [*up_to("secret.txt", 2), *absolute("/etc/passwd")]
    assert len(spelled) >= 100
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        file = connection.makefile("rb")
        for one in spelled:
            target = one.replace(" ", "%20").encode("utf-8")
            connection.sendall(b"GET /page/%b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (target, server.port))
            head = b"".join(iter(file.readline, b"\r\n"))
            assert head.split()[1] in (b"404", b"400"), one
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
            )
            body = file.read(length)
            assert SECRET.encode() not in body
            assert b"root:" not in body


def test_an_answer_on_the_wire_carries_the_headers_of_safety(server: Served) -> None:
    answer = server.send(http("/api/runs").format(port=server.port).encode())
    head = answer.partition(b"\r\n\r\n")[0].lower()
    for wanted in (
        b"content-security-policy: default-src 'none'",
        b"nosniff",
        b"cache-control: no-store",
        b"no-referrer",
    ):
        assert wanted in head
    assert b"server:" not in head


def test_many_pages_listen_and_the_others_are_served_meanwhile(server: Served) -> None:
    request = http("/api/events").format(port=server.port).encode()
    streams = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(30)]
    try:
        for stream in streams:
            stream.sendall(request)
        for stream in streams:
            heard = b""
            while b"\n\n" not in heard.partition(b"\r\n\r\n")[2]:
                heard += stream.recv(4_096)
            assert b"event: runs" in heard
        assert status_of(server.send(http("/api/runs").format(port=server.port).encode())) == 200
    finally:
        for stream in streams:
            stream.close()


def test_a_client_that_never_ends_its_request_holds_up_nobody(server: Served) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(20)]
    try:
        for one in slow:
            one.sendall(b"GET / HTTP/1.1\r\nHost: ")
        begun = time.monotonic()
        assert status_of(server.send(http("/").format(port=server.port).encode())) == 200
        assert time.monotonic() - begun < 5
    finally:
        for one in slow:
            one.close()


def test_the_token_lets_in_on_the_wire_and_is_in_no_answer(run_folder: Path) -> None:
    served = Served([run_folder], token=TOKEN)
    try:

        def ask(target: str, *headers: str) -> bytes:
            return served.send(http(target, *headers).format(port=served.port).encode())

        assert status_of(ask("/")) == 401
        assert status_of(ask("/api/events")) == 401
        let_in = ask(f"/?token={TOKEN}")
        assert status_of(let_in) == 303
        cookie = next(line for line in let_in.decode().split("\r\n") if line.startswith("set-cookie"))
        page = ask("/", "Cookie: " + cookie.split(": ")[1].split(";")[0])
        assert status_of(page) == 200
        assert TOKEN.encode() not in let_in + page
    finally:
        served.stop()


# --- ports and addresses ---


def test_the_default_port_or_the_next_free_one_is_taken() -> None:
    taken: list[socket.socket] = []
    try:
        taken.extend(take_port("127.0.0.1", None) for _ in range(3))
        ports = [one.getsockname()[1] for one in taken]
        assert ports == sorted(set(ports))
        assert PORT <= ports[0] < ports[-1] < PORT + watch.PORTS_TRIED
    finally:
        for one in taken:
            one.close()


def test_it_listens_on_this_machine_alone() -> None:
    with take_port("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_is_said_with_the_mend() -> None:
    with take_port("127.0.0.1", 0) as listening, pytest.raises(InputError, match=r"is taken; leave --port out"):
        take_port("127.0.0.1", listening.getsockname()[1])


def test_when_all_ports_are_taken_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(host: str, port: int) -> socket.socket:
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(watch, "_listen", full)
    with pytest.raises(InputError, match="all taken"):
        take_port("127.0.0.1", None)


@pytest.mark.parametrize(
    "host, port, message",
    [
        ("192.0.2.1", 0, "no address of this machine"),
        ("no-such-name.invalid", 0, "no address of this machine"),
        ("127.0.0.1", -1, "no port"),
        ("127.0.0.1", 65_536, "no port"),
    ],
)
def test_what_cannot_be_listened_on_is_said(host: str, port: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        take_port(host, port)


def test_a_port_of_the_system_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(host: str, port: int) -> socket.socket:
        raise OSError(errno.EACCES, "permission denied")

    monkeypatch.setattr(watch, "_listen", forbidden)
    with pytest.raises(InputError, match="below 1024"):
        take_port("127.0.0.1", 80)


def test_another_address_is_refused_before_a_port_is_taken(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "take_port", lambda *_: pytest.fail("a port was taken"))
    with pytest.raises(InputError, match="token"):
        watch.serve([run_folder], host="0.0.0.0")


def test_what_is_said_at_the_start(run_folder: Path) -> None:
    runs = Runs([run_folder])
    runs.look()
    plain = "\n".join(opening_lines(door("127.0.0.1", None).on_port(8712), runs))
    assert "addition-3: http://127.0.0.1:8712/" in plain
    assert "Ctrl-C" in plain
    with_token = "\n".join(opening_lines(door("0.0.0.0", TOKEN).on_port(8712), runs))
    assert TOKEN not in with_token
    assert "token=…" in with_token
    assert "localhost" in with_token
    assert max(len(plain.splitlines()), len(with_token.splitlines())) <= 3


# --- the command ---


def start(run: Path, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], int]:
    """`dinghai watch` as a process, and its port."""
    command = [sys.executable, "-W", "error", "-m", "dinghai.cli", "watch", str(run), "--port", "0", *arguments]
    code = "import sys; from dinghai.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *command[5:]]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, line
    return process, int(line.split("http://127.0.0.1:")[1].split("/")[0])


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the server did not answer")


def test_ctrl_c_ends_it_at_once_with_pages_open_and_without_a_word(run_folder: Path) -> None:
    process, port = start(run_folder, "--token", TOKEN)
    try:
        wait_for(port)
        request = http(f"/?token={TOKEN}").format(port=port).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request)
            cookie = connection.recv(65_536).decode().split("set-cookie: ")[1].split(";")[0]
        streams = []
        for _ in range(5):
            stream = socket.create_connection(("127.0.0.1", port), timeout=10)
            lines = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\r\n"
            stream.sendall(lines.encode())
            assert b"200" in stream.recv(4_096)
            streams.append(stream)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
        assert time.monotonic() - begun < 2.0  # 1 s, and what a loaded machine takes to notice
        assert process.returncode == 0
        assert errors == ""
        assert TOKEN not in output
        for stream in streams:
            stream.close()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def test_open_opens_the_page_once_it_is_there(run_folder: Path, tmp_path: Path) -> None:
    """`$BROWSER` is what Python's webbrowser runs; here it notes the address."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    process, port = start(run_folder, "--open", BROWSER=f"{browser} %s")
    try:
        for _ in range(200):
            if (tmp_path / "opened").exists() and (tmp_path / "opened").read_text():
                break
            time.sleep(0.05)
        assert (tmp_path / "opened").read_text().strip() == f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_the_list_of_runs_on_the_wire_is_json(server: Served) -> None:
    answer = server.send(http("/api/runs").format(port=server.port).encode())
    told: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["runs"][0]["name"] == "addition-3"
