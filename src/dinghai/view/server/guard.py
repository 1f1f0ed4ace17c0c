"""Who may ask for what: every request passes here first, and every answer leaves with the headers set here.

The page shows a run to the person who started it. What threatens that is not only the network but the reader's own
browser: any web page may send requests to this machine's ports, and one whose name is made to point here (DNS
rebinding) may even read the answers. So a request must name this server in its one Host header, must not come from
another page, and must only read. On an address that other machines reach it must also know the token.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote

from dinghai.errors import InputError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
METHODS = ("GET", "HEAD")
LONGEST_PATH = 300  # characters; the longest of ours has fewer than 60
LONGEST_QUERY = 600
LARGEST_HEADERS = 16 * 1024  # bytes, all together
MOST_HEADERS = 100
SHORTEST_TOKEN = 12  # characters: what a reader of the network may guess is no secret

_OWN_SITES = {"same-origin", "none"}  # Sec-Fetch-Site: this page itself, or the reader's address bar
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")

# The page's own files may run and be loaded, and nothing else: no inline script or style, no frame, no other origin.
# Trusted types take the sinks away through which text could become markup (innerHTML and its kind).
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
]


@dataclass(frozen=True)
class Door:
    """Where the server listens, by which names it may be called, and what a reader has to know."""

    host: str  # as given, an IPv6 address without brackets
    port: int
    token: str | None
    # In the cookie stands this and not the token: cookies go to every port of the host, so others may see them.
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def is_wildcard(self) -> bool:
        """Listens on every address of the machine."""
        address = _address(self.host)
        return address is not None and address.is_unspecified

    @property
    def address(self) -> str:
        """What a reader opens, without the token."""
        name = "127.0.0.1" if self.is_wildcard else _in_url(self.host)
        return f"http://{name}:{self.port}/"

    @property
    def address_with_token(self) -> str:
        return self.address if self.token is None else f"{self.address}?token={quote(self.token, safe='')}"

    @property
    def cookie(self) -> str:
        """Its name; with the port, since cookies of two servers on one host would overwrite each other."""
        return f"dinghai-{self.port}"

    def on_port(self, port: int) -> Door:
        return replace(self, port=port)

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this server.

        Names of loopback, or the one given with --host. Where the server listens on all addresses, any IP address and
        `localhost`: a page of another site can make its own *name* point here, but never an address.
        """
        match = _HOST.fullmatch(host)
        if not match or int(match["port"] or 80) != self.port:
            return False
        name = match["name"].lower()
        if self.is_wildcard:
            return name == "localhost" or _address(name.strip("[]")) is not None
        names = {_in_url(self.host).lower()}
        return name in (names.union(LOOPBACK_NAMES) if self.is_loopback else names)


def door(host: str, token: str | None) -> Door:
    """The door for what the user asked for; its port is set when one has been taken.

    Raises:
        InputError: others could read the page without a token, or the token or address is no good.
    """
    host = host.strip().removeprefix("[").removesuffix("]")
    if not host or not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
        raise InputError(f"--host {host!r} is no address or name of this machine; leave it out for this machine alone")
    if token is None and not is_loopback(host):
        raise InputError(
            f"--host {host} lets other machines read the run, prompts and completions included: give a --token that "
            "they must know too, or leave --host out and forward the port (ssh -L 8712:127.0.0.1:8712)"
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise InputError(
            f"--token has {len(token)} characters, and fewer than {SHORTEST_TOKEN} can be guessed; `python -c "
            "'import secrets; print(secrets.token_urlsafe())'` makes one"
        )
    return Door(host=host, port=0, token=token)


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine. Of names only `localhost` is believed."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class Guard:
    """ASGI: lets a request through to `app`, or answers it with the reason why not."""

    def __init__(self, app: App, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_security(message.get("headers") or [])
            await send(message)

        refused = self.refusal(scope)
        if refused is None:
            await self.app(scope, receive, guarded)
        else:
            await refused.answer(guarded)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why the request is not answered; None where it is."""
        checks = (_check_method, _check_form, _check_target, self._check_host, self._check_site, self._check_token)
        return next((refused for check in checks if (refused := check(scope)) is not None), None)

    def _check_host(self, scope: Scope) -> Refusal | None:
        hosts = _header(scope, b"host")
        if len(hosts) == 1 and self.door.knows_host(hosts[0]):
            return None
        if self.door.is_wildcard:
            mend = "use an IP address of this machine, or start `dinghai watch` with --host and the name you use"
        else:
            mend = f"open {self.door.address}"
        return Refusal(400, f"this server is not known by that name: {mend} (a forwarded port keeps its number)")

    def _check_site(self, scope: Scope) -> Refusal | None:
        sites = _header(scope, b"sec-fetch-site")
        own = {f"http://{host.lower()}" for host in _header(scope, b"host")}
        origins = [origin.lower() for origin in _header(scope, b"origin")]
        if all(site in _OWN_SITES for site in sites) and all(origin in own for origin in origins):
            return None
        return Refusal(403, "another page sent this request; type the address instead of following a link")

    def _check_token(self, scope: Scope) -> Refusal | None:
        token = self.door.token
        if token is None or any(_same(value, self.door.session) for value in _cookies(scope, self.door.cookie)):
            return None
        given = [value for name, value in _query(scope) if name == "token"]
        if scope["path"] == "/" and len(given) == 1 and _same(given[0], token):
            # The token leaves the address bar, and with it the history and what is copied from there.
            cookie = f"{self.door.cookie}={self.door.session}; Path=/; HttpOnly; SameSite=Strict"
            return Refusal(303, "", [("location", "/"), ("set-cookie", cookie)])
        wrong = " (that one is wrong)" if given else ""
        return Refusal(401, f"this page needs its token: open {self.door.address}?token=…{wrong}")


@dataclass(frozen=True)
class Refusal:
    """An answer in place of what was asked for."""

    status: int
    why: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    async def answer(self, send: Send) -> None:
        body = json.dumps({"error": self.why}, ensure_ascii=False).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            *self.headers,
        ]
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


def _check_method(scope: Scope) -> Refusal | None:
    if scope.get("method") in METHODS:
        return None
    return Refusal(405, "this server only shows: GET and HEAD", [("allow", ", ".join(METHODS))])


def _check_form(scope: Scope) -> Refusal | None:
    """What no browser sends here is not worth a thought: other protocols, a body to read, heaps of headers."""
    if scope["http_version"] not in ("1.0", "1.1"):
        return Refusal(505, "this server speaks HTTP/1.1")
    if len(scope["headers"]) > MOST_HEADERS or sum(len(k) + len(v) for k, v in scope["headers"]) > LARGEST_HEADERS:
        return Refusal(431, "the request's headers are too many or too large")
    if _header(scope, b"transfer-encoding") or any(length != "0" for length in _header(scope, b"content-length")):
        return Refusal(400, "this server only shows, so a request brings no body")
    return None


def _check_target(scope: Scope) -> Refusal | None:
    # A target in absolute form (`GET http://other/ HTTP/1.1`) is for proxies; its host would count before Host.
    raw = bytes(scope.get("raw_path") or b"/")
    if not raw.startswith(b"/") or not scope["path"].startswith("/"):
        return Refusal(400, "the address asked for must begin with /")
    if len(raw) > LONGEST_PATH or len(scope["query_string"]) > LONGEST_QUERY:
        return Refusal(414, "the address is longer than any of this server's")
    return None


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _cookies(scope: Scope, name: str) -> list[str]:
    pairs = (part.strip().partition("=") for line in _header(scope, b"cookie") for part in line.split(";"))
    return [value for key, _, value in pairs if key == name]


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=None)


def _same(one: str, other: str) -> bool:
    """Takes the same time wherever the two differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def _with_security(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*headers, *((name.encode(), value.encode()) for name, value in HEADERS)]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
