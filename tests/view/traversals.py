"""Addresses that try to reach a file outside of what a server shows: the same few places, written in many ways."""

from __future__ import annotations

SECRET = "the content of a file that nobody may see"

# Ways to write "up", "slash" and the name of a file; each is known to have fooled some server.
_UP = [
    "..",
    "%2e%2e",
    ".%2e",
    "%2E.",
    "%252e%252e",
    "..%00",
    "%c0%ae%c0%ae",
    "%e0%80%ae%e0%80%ae",
    "..;",
    "...",
    "%u002e%u002e",
]
_SLASH = ["/", "%2f", "%2F", "%252f", "\\", "%5c", "//", "%c0%af", "%e0%80%af", "%u2215", "/./", "%00/", "%0a/"]


def up_to(name: str, levels: int = 3) -> list[str]:
    return [(up + slash) * levels + name for up in _UP for slash in _SLASH]


def absolute(path: str) -> list[str]:
    shown = path.lstrip("/")
    return [
        path,
        "/" + path,
        "//" + path,
        path.replace("/", "%2f"),
        path.replace("/", "%252f"),
        f"file://{path}",
        f"file:{path}",
        f"C:\\{shown}",
        f"C:%5c{shown}",
        f"\\\\localhost\\c$\\{shown}",
        f"//localhost/{shown}",
        f"%2f%2f{shown}",
        f"~/{shown}",
        f"./{path}",
        f"{path}%00.js",
        f"{path}%00",
        f"{path}?x.js",
        f"{path}#.js",
        f"{path};.js",
        f"{path}.",
        f"{path}::$DATA",
    ]


NUMBERS_THAT_ARE_NONE = [
    *(
        "-1",
        "+1",
        "1.0",
        "1e3",
        "0x1",
        "1_000",
        " 1",
        "1 ",
        "１",
        "٣",
        "²",
        "NaN",
        "null",
        "",
        "1;2",
        "1,2",
        "[1]",
        "1%00",
    ),
    *(
        "9" * 13,
        "9" * 400,
        "..",
        "../1",
        "..%2f1",
        "%2e%2e",
        "/etc/passwd",
        "step-000001",
        "1/..",
        "1%2f..",
        "{}",
        "true",
    ),
]
