"""Writes a run's `report.html`: one file that holds everything it shows, opens offline and runs nothing but its own.

What a model or a data set wrote is data there, never markup: it lies in a JSON block in which no tag can begin, the
page puts it in as text, and the page's policy (CSP) lets only its own script and style run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from string import Template
from typing import Any

from dinghai.files import nonfinite_as_text
from dinghai.lens.summary import load_run_metrics
from dinghai.text import safe
from dinghai.trace.files import write_atomically
from dinghai.view import bundle
from dinghai.view.excerpt import EXTENTS, Excerpt
from dinghai.view.overview import overview
from dinghai.view.replay_data import Replay
from dinghai.view.report_charts import removed_by_step
from dinghai.view.token_text import TokenText, load_token_text, tokenizer_file

REPORT = "report.html"
BYTES_AT_MOST = 3_000_000  # opens at once, and goes through a mail
_STYLES = ["base.css", "charts.css", "overview.css", "doctor.css", "clip.css", "replay.css", "tokens.css"]


def write_report(run_folder: Path, token_text: TokenText | None = None) -> Path:
    """Write the report of a run, whole or unfinished, and return its path.

    Args:
        run_folder: `runs/NAME`. What it lacks (a trace, a model, some steps) is said on the page.
        token_text: from a token id to its text; without it the run's own tokenizer is used, and ids are shown where
            there is none.

    Raises:
        InputError: the folder is not a run, or its metrics are damaged.
        RunFailed: the report cannot be written.
    """
    run_folder = Path(run_folder)
    metrics = load_run_metrics(run_folder)
    seen = overview(run_folder, metrics)
    notes = list(seen["notes"])
    if token_text is None:
        token_text = load_token_text(tokenizer_file(run_folder))
    replay = Replay(run_folder)
    named = [*evidence_places(seen["findings"]), *replay.places()]
    excerpt = Excerpt(run_folder, token_text, removed_by_step(metrics), seen["rule"], named)
    notes += [*excerpt.notes, *(replay.notes if excerpt.steps else [])]
    if token_text is None and excerpt.steps:
        notes.append("the run has no readable tokenizer.json, so tokens are shown by their ids")
    for extent in EXTENTS:
        taken = excerpt.take(extent)
        page = render(seen, taken | replay.take(taken["groups"]), notes)
        if len(page) <= BYTES_AT_MOST:
            break
    else:  # a vocabulary of enormous tokens
        page = render(seen, excerpt.nothing(), [*notes, "the completions are too large to show"])
    path = run_folder / REPORT
    write_atomically(path, page, then="run `dinghai report` again")
    return path


def evidence_places(findings: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(step, group) of what the findings point to."""
    places = [one["place"] for finding in findings for one in finding["evidence"]]
    return [(place["step"], place["group"]) for place in places if {"step", "group"} <= place.keys()]


def render(seen: dict[str, Any], excerpt: dict[str, Any], notes: list[str]) -> bytes:
    """The page as UTF-8.

    Args:
        seen: from `overview`. excerpt: from `Excerpt.take`. notes: what is missing or damaged.
    """
    style = bundle.style(_STYLES)
    script = bundle.script("report.js")
    text = Template(bundle.page_file("report.html")).substitute(
        csp=content_security_policy(script, style),
        title=html.escape(seen["name"]),
        style=style,
        script=script,
        verdict=_paragraphs(seen["verdict"]),
        notes=_paragraphs(notes),
        data=embedded_json({"overview": seen | {"notes": notes}, **excerpt}),
    )
    return text.encode("utf-8", "backslashreplace")


def content_security_policy(script: str, style: str) -> str:
    """Only this very script and style; no image, font, frame, form, connection or other file."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded_json(data: Any) -> str:
    """JSON that cannot end the script element it lies in, nor begin a comment there, whatever its strings hold."""
    text = json.dumps(nonfinite_as_text(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{html.escape(safe(text))}</p>" for text in texts)
