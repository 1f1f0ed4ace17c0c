"""Who the live page's server answers: a table of requests with the status that each must get, and what all answers say.

Run: pytest tests/view/test_server_guard.py
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from asgi_client import HOST, Answered, Headers, request

from dinghai.errors import InputError
from dinghai.view.server.guard import HEADERS, Door, Guard, door, is_loopback

TOKEN = "a token of some length"


async def shows(scope: Any, receive: Any, send: Any) -> None:
    """What lies behind the guard: it answers everything."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"the run"})


def ask(entrance: Door, target: str = "/", headers: Headers = (HOST,), method: str = "GET") -> Answered:
    return asyncio.run(request(Guard(shows, entrance), target, headers, method))


def host(value: str) -> list[tuple[str, str]]:
    return [("host", value)]


HERE = door("127.0.0.1", None).on_port(8712)

# What is sent besides a good Host, or instead of it -> the status.
REQUESTS: list[tuple[str, Headers, int]] = [
    ("by address", host("127.0.0.1:8712"), 200),
    ("by name", host("localhost:8712"), 200),
    ("by name in capitals", host("LocalHost:8712"), 200),
    ("by IPv6 address", host("[::1]:8712"), 200),
    ("no Host", [], 400),
    ("empty Host", host(""), 400),
    ("two Hosts, both good", [*host("127.0.0.1:8712"), *host("127.0.0.1:8712")], 400),
    ("two Hosts, one foreign", [*host("127.0.0.1:8712"), *host("evil.example")], 400),
    ("two Hosts in one", host("127.0.0.1:8712, evil.example"), 400),
    ("foreign Host", host("evil.example"), 400),
    ("foreign Host on our port", host("evil.example:8712"), 400),
    ("a name made to point here", host("rebound.evil.example:8712"), 400),
    ("our name as a subdomain", host("localhost.evil.example:8712"), 400),
    ("our address as a subdomain", host("127.0.0.1.evil.example:8712"), 400),
    ("our name with a dot", host("localhost.:8712"), 400),
    ("another port", host("127.0.0.1:8713"), 400),
    ("no port", host("127.0.0.1"), 400),
    ("port with zeros and junk", host("127.0.0.1:8712x"), 400),
    ("user before the name", host("user@127.0.0.1:8712"), 400),
    ("user that looks like us", host("127.0.0.1:8712@evil.example"), 400),
    ("address as one number", host("2130706433:8712"), 400),
    ("short address", host("127.1:8712"), 400),
    ("hexadecimal address", host("0x7f000001:8712"), 400),
    ("another loopback address", host("127.0.0.2:8712"), 400),
    ("all addresses", host("0.0.0.0:8712"), 400),
    ("mapped address", host("[::ffff:127.0.0.1]:8712"), 400),
    ("space before", host(" 127.0.0.1:8712"), 400),
    ("path in Host", host("127.0.0.1:8712/x"), 400),
    ("line end in Host", host("127.0.0.1:8712\r\nx: y"), 400),
    ("not ASCII", host("127.0.0.1:8712\xe9"), 400),
    ("full-width digits", host("127.0.0.1:\xb2"), 400),
    ("own Origin", [HOST, ("origin", "http://127.0.0.1:8712")], 200),
    ("Origin of our other name", [HOST, ("origin", "http://localhost:8712")], 403),
    ("foreign Origin", [HOST, ("origin", "http://evil.example")], 403),
    ("own Origin over https", [HOST, ("origin", "https://127.0.0.1:8712")], 403),
    ("Origin on another port", [HOST, ("origin", "http://127.0.0.1:8888")], 403),
    ("Origin null", [HOST, ("origin", "null")], 403),
    ("Origin of a file", [HOST, ("origin", "file://")], 403),
    ("empty Origin", [HOST, ("origin", "")], 403),
    ("two Origins", [HOST, ("origin", "http://127.0.0.1:8712"), ("origin", "http://evil.example")], 403),
    ("from the page itself", [HOST, ("sec-fetch-site", "same-origin")], 200),
    ("from the address bar", [HOST, ("sec-fetch-site", "none")], 200),
    ("from another site", [HOST, ("sec-fetch-site", "cross-site")], 403),
    ("from another port", [HOST, ("sec-fetch-site", "same-site")], 403),
    ("from something new", [HOST, ("sec-fetch-site", "somewhere")], 403),
    ("two sites", [HOST, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], 403),
    ("forwarded for another host", [HOST, ("x-forwarded-host", "evil.example")], 200),
    ("forwarded to us", [*host("evil.example"), ("x-forwarded-host", "127.0.0.1:8712")], 400),
]


@pytest.mark.parametrize("headers, status", [case[1:] for case in REQUESTS], ids=[case[0] for case in REQUESTS])
def test_who_is_answered(headers: Headers, status: int) -> None:
    answered = ask(HERE, headers=headers)
    assert answered.status == status
    assert (answered.body == b"the run") == (status == 200)


def test_there_are_enough_of_them() -> None:
    assert len(REQUESTS) >= 30


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_only_reads_is_answered(method: str) -> None:
    assert ask(HERE, method=method).status == 200


WRITES = "POST PUT PATCH DELETE OPTIONS TRACE CONNECT PROPFIND MKCOL COPY MOVE LOCK UNLOCK PURGE QUERY get Get LINK FOO"


@pytest.mark.parametrize("method", WRITES.split())
def test_any_other_method_is_refused_whatever_it_asks_for(method: str) -> None:
    """By a list of what is allowed: a list of what is not always lacks one (Ray's lacked DELETE)."""
    for target in ("/", "/api/runs", "/anything"):
        answered = ask(HERE, target, method=method)
        assert answered.status == 405
        assert answered.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("target", ["http://evil.example/", "http://127.0.0.1:8712/", "*", "evil.example:80", "\\", ""])
def test_a_target_that_is_no_path_is_refused(target: str) -> None:
    assert ask(HERE, target).status == 400


def test_a_long_address_is_refused() -> None:
    assert ask(HERE, "/" + "x" * 5_000).status == 414
    assert ask(HERE, "/api/runs?" + "x" * 5_000).status == 414


@pytest.mark.parametrize("headers, status", [(host("127.0.0.1:8712"), 200), (host("evil.example"), 400)])
def test_every_answer_carries_the_headers_of_safety(headers: Headers, status: int) -> None:
    answered = ask(HERE, headers=headers)
    assert answered.status == status
    for name, value in HEADERS:
        assert answered.headers[name] == value


def test_the_policy_lets_the_page_load_its_own_files_and_nothing_else() -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in dict(HEADERS)["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert {policy.pop(name) for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy == {"require-trusted-types-for": "'script'", "trusted-types": "'none'"}
    assert "unsafe" not in str(HEADERS)


def test_a_refusal_names_the_mend() -> None:
    assert "http://127.0.0.1:8712/" in ask(HERE, headers=host("evil.example")).json()["error"]
    assert "type the address" in ask(HERE, headers=[HOST, ("origin", "null")]).json()["error"]


# --- other addresses, and the token ---


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "::1", "[::1]", " 127.0.0.1 "])
def test_this_machine_alone_needs_no_token(address: str) -> None:
    assert door(address, None).is_loopback


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "fe80::1", "gpu-box", "localhost.example", "example.org"]
)
def test_any_other_address_needs_a_token(address: str) -> None:
    with pytest.raises(InputError, match="token"):
        door(address, None)
    assert not door(address, TOKEN).is_loopback
    assert not is_loopback(address)


@pytest.mark.parametrize("address", ["", "  ", "a b", "http://x", "x/y", "1.2.3.4\nx", "x%00"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="--host"):
        door(address, TOKEN)


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(InputError, match="guessed"):
        door("127.0.0.1", "1234")


LAN = door("192.168.1.5", TOKEN).on_port(9000)
NAMED = door("gpu-box", TOKEN).on_port(80)
ALL = door("0.0.0.0", TOKEN).on_port(8712)
ALL_6 = door("::", TOKEN).on_port(8712)


@pytest.mark.parametrize(
    "entrance, value, known",
    [
        (LAN, "192.168.1.5:9000", True),
        (LAN, "192.168.1.5:8712", False),
        (LAN, "localhost:9000", False),
        (LAN, "192.168.1.6:9000", False),
        (NAMED, "gpu-box:80", True),
        (NAMED, "gpu-box", True),
        (NAMED, "GPU-Box", True),
        (NAMED, "gpu-box.example", False),
        (ALL, "192.168.1.5:8712", True),
        (ALL, "[fe80::1]:8712", True),
        (ALL, "localhost:8712", True),
        (ALL, "gpu-box:8712", False),
        (ALL, "1.2.3.4.evil.example:8712", False),
        (ALL, "192.168.1.5:80", False),
        (ALL, "999.1.1.1:8712", False),
        (ALL, "[evil.example]:8712", False),
        (ALL_6, "10.0.0.1:8712", True),
        (ALL_6, "evil.example:8712", False),
    ],
)
def test_by_which_names_it_is_known_elsewhere(entrance: Door, value: str, known: bool) -> None:
    """A page of another site can make its own name point here (DNS rebinding), and never an address."""
    assert entrance.knows_host(value) is known


def lan(*more: tuple[str, str]) -> list[tuple[str, str]]:
    return [("host", "192.168.1.5:9000"), *more]


def cookie_of(answered: Answered) -> str:
    return answered.headers["set-cookie"].partition(";")[0]


def test_the_token_is_asked_for_once_and_leaves_the_address() -> None:
    first = ask(LAN, "/?token=a%20token+of%20some%20length", lan(("sec-fetch-site", "none")))
    assert first.status == 303
    assert first.headers["location"] == "/"
    settings = first.headers["set-cookie"].split("; ")[1:]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(settings)
    for target in ("/", "/api/runs", "/page/live.js"):
        assert ask(LAN, target, lan(("cookie", cookie_of(first)))).status == 200
        assert ask(LAN, target, lan(("cookie", f"other=1; {cookie_of(first)}; more=2"))).status == 200


@pytest.mark.parametrize(
    "target, headers",
    [
        ("/", lan()),
        ("/api/runs", lan()),
        ("/page/live.js", lan()),
        ("/?token=", lan()),
        ("/?token=wrong", lan()),
        ("/?token=" + TOKEN[:-1].replace(" ", "+"), lan()),
        ("/?token=" + TOKEN.replace(" ", "+") + "x", lan()),
        ("/?token=" + TOKEN.upper().replace(" ", "+"), lan()),
        ("/?Token=" + TOKEN.replace(" ", "+"), lan()),
        ("/api/runs?token=" + TOKEN.replace(" ", "+"), lan()),
        ("/?token=wrong&token=" + TOKEN.replace(" ", "+"), lan()),
        ("/?token=%ff%fe", lan()),
        ("/", lan(("cookie", "dinghai-9000="))),
        ("/", lan(("cookie", f"dinghai-9000={TOKEN}"))),
        ("/", lan(("cookie", f"dinghai-8712={LAN.session}"))),
        ("/", lan(("cookie", f"Dinghai-9000={LAN.session}"))),
        ("/", lan(("cookie", f"dinghai-9000={LAN.session[:-1]}"))),
        ("/", lan(("cookie", f"dinghai-9000={HERE.session}"))),
        ("/", lan(("authorization", f"Bearer {TOKEN}"))),
    ],
)
def test_without_the_token_there_is_nothing(target: str, headers: Headers) -> None:
    answered = ask(LAN, target, headers)
    assert answered.status == 401
    assert TOKEN not in answered.body.decode()
    assert "set-cookie" not in answered.headers


def test_the_token_does_not_open_what_the_rest_of_the_guard_closes() -> None:
    cookie = ("cookie", f"{LAN.cookie}={LAN.session}")
    assert ask(LAN, "/", [*host("evil.example"), cookie]).status == 400
    assert ask(LAN, "/", lan(cookie, ("sec-fetch-site", "cross-site"))).status == 403
    assert ask(LAN, "/", lan(cookie), method="POST").status == 405
    assert ask(LAN, "/?token=" + TOKEN.replace(" ", "+"), lan(("origin", "http://evil.example"))).status == 403


def test_a_token_on_this_machine_is_asked_for_too() -> None:
    entrance = door("127.0.0.1", TOKEN).on_port(8712)
    assert ask(entrance).status == 401
    assert ask(entrance, headers=[HOST, ("cookie", f"{entrance.cookie}={entrance.session}")]).status == 200


def test_every_server_has_a_cookie_of_its_own() -> None:
    assert len({door("127.0.0.1", TOKEN).session for _ in range(100)}) == 100
    assert re.fullmatch(r"dinghai-9000", LAN.cookie)
    assert LAN.session not in repr(LAN)


@pytest.mark.parametrize(
    "entrance, address",
    [
        (HERE, "http://127.0.0.1:8712/"),
        (door("::1", None).on_port(1), "http://[::1]:1/"),
        (ALL, "http://127.0.0.1:8712/"),
        (NAMED, "http://gpu-box:80/"),
    ],
)
def test_the_address_that_is_told_is_one_that_is_answered(entrance: Door, address: str) -> None:
    assert entrance.address == address
    assert entrance.knows_host(address.split("/")[2])


def test_the_address_with_the_token_is_one_that_lets_in() -> None:
    entrance = door("127.0.0.1", "a&b=c#d%?/ é海 tail").on_port(8712)
    target = entrance.address_with_token.removeprefix("http://127.0.0.1:8712")
    assert ask(entrance, target).status == 303
