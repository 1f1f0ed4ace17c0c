"""The doctor's findings on the pages: every one with its evidence, the prompts they point to, and nothing unsafe.

Run: pytest tests/view/test_findings_view.py
"""

from __future__ import annotations

import html
from pathlib import Path

import payloads
import pytest
from synthetic_run import read_data

from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.summary import summarize
from dinghai.text import safe
from dinghai.view import overview as overview_module
from dinghai.view.overview import overview
from dinghai.view.report import evidence_places


def test_the_page_has_every_finding_and_the_prompts_they_point_to(run_folder: Path, page: str) -> None:
    data, findings = read_data(page), summarize(run_folder).findings
    assert findings
    shown = data["overview"]["findings"]
    assert [one["check"] for one in shown] == [one.check for one in findings]
    assert [one["sentence"] for one in shown] == [safe(one.sentence) for one in findings]
    places = evidence_places(shown)
    assert places
    assert {f"{step}/{number}" for step, number in places} <= set(data["groups"])


def test_who_runs_no_script_reads_them_as_sentences(run_folder: Path, page: str) -> None:
    static = page[: page.index("<main")]
    for finding in summarize(run_folder).findings:
        assert html.escape(safe(finding.sentence)) in static


def test_what_looks_fine_has_none_and_says_so(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_findings = summarize(run_folder)
    monkeypatch.setattr(
        overview_module, "summarize_rows", lambda *_: type(with_findings)(**{**vars(with_findings), "findings": []})
    )
    seen = overview(run_folder)
    assert seen["findings"] == []
    assert seen["verdict"][-1] == "Nothing looks wrong."


def test_their_texts_are_safe_to_show(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = summarize(run_folder)
    findings = [
        Finding(text, Grade.NOTE, 0.5, text, (Evidence(text, Place(step=1)),), text, text, "tokens")
        for text in payloads.ALL
    ]
    told = type(summary)(**{**vars(summary), "findings": findings})
    monkeypatch.setattr(overview_module, "summarize_rows", lambda *_: told)
    for shown, text in zip(overview(run_folder)["findings"], payloads.ALL, strict=True):
        assert shown["check"] == shown["title"] == shown["cause"] == shown["fix"] == safe(text)
        assert shown["evidence"] == [{"text": safe(text), "place": {"step": 1}}]
