"""The files of the live page: a table of names, read once. No other file can be asked for by any name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dinghai.view.bundle import imported, page_file
from dinghai.view.palette import palette_css
from dinghai.view.server.answers import Answer, compressed

ENTRY = "live.js"
PAGE = "live.html"
PALETTE = "palette.css"
STYLES = (
    PALETTE,
    "base.css",
    "charts.css",
    "overview.css",
    "doctor.css",
    "clip.css",
    "replay.css",
    "tokens.css",
    "live.css",
)
_OTHERS = ("theme.js", "icon.svg")
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Page:
    """A file as it is sent."""

    answer: Answer
    kind: str
    etag: str


def load_pages() -> dict[str, Page]:
    """Path -> file: the page itself as `/`, its modules and styles under `/page/`."""
    texts = {f"/page/{name}": page_file(name) for name in (*modules(), *_OTHERS)}
    texts |= {f"/page/{name}": palette_css() if name == PALETTE else page_file(name) for name in STYLES}
    texts["/"] = _with_links(page_file(PAGE))
    return {path: _page(path, text) for path, text in texts.items()}


def modules() -> list[str]:
    """The entry module and all that it imports, directly or not."""
    found: dict[str, None] = {ENTRY: None}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        for other in imported(name, page_file(name)):
            if other not in found:
                found[other] = None
                waiting.append(other)
    return list(found)


def _with_links(html: str) -> str:
    """The page with its styles, and its modules named in advance, since what one imports is known once it is there."""
    styles = [f'<link rel="stylesheet" href="/page/{name}">' for name in STYLES]
    preloads = [f'<link rel="modulepreload" href="/page/{name}">' for name in modules()]
    return html.replace("<!-- styles and modules -->", "\n".join([*styles, *preloads]))


def _page(path: str, text: str) -> Page:
    body = text.encode()
    kind = _TYPES["html" if path == "/" else path.rsplit(".", 1)[-1]]
    return Page(compressed(body), f"{kind}; charset=utf-8", f'"{hashlib.sha256(body).hexdigest()[:20]}"')
