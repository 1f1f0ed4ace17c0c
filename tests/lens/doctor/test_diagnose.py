"""The doctor as a whole: findings are ranked, a check that fails takes none with it, and docs/doctor.md tells them all.

Run: pytest tests/lens/doctor/test_diagnose.py
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from faults import case_of, every, make_run
from rich.console import Console

from dinghai.lens import summarize
from dinghai.lens.doctor import diagnose
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.doctor.listing import markdown, print_checks

DOCUMENT = Path(__file__).parents[3] / "docs" / "doctor.md"


def finding(grade: Grade, share: float) -> Finding:
    evidence = (Evidence("in 3 of 4 steps.", Place(step=3)),)
    return Finding("x", grade, share, "It is wrong", evidence, "because", "update.lr may be lower", "curves")


def check(name: str, found: Finding | None, early: bool = True) -> Check:
    return Check(name, "A fault.", {}, lambda _: found, early)


def broken(_: Case) -> Finding | None:
    raise ZeroDivisionError("by zero")


def test_the_gravest_comes_first_and_then_what_concerns_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [(Grade.NOTE, 1.0), (Grade.HARMFUL, 0.2), (Grade.INVALID, 0.1), (Grade.HARMFUL, 0.9)]
    monkeypatch.setattr(diagnose, "CHECKS", tuple(check(str(rank), finding(*rank)) for rank in ranks))
    found = diagnose.diagnose(case_of(make_run(tmp_path, {})))
    assert [(one.grade, one.share) for one in found] == [ranks[place] for place in (2, 3, 1, 0)]


def test_a_check_that_fails_is_named_and_the_others_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (Check("broken", "A fault.", {}, broken), check("sound", finding(Grade.NOTE, 1.0)))
    monkeypatch.setattr(diagnose, "CHECKS", checks)
    summary = summarize(make_run(tmp_path, {}))
    assert [one.check for one in summary.findings] == ["x"]
    assert summary.notes == ["the check broken failed: ZeroDivisionError: by zero"]
    with pytest.raises(ZeroDivisionError):
        diagnose.diagnose(case_of(tmp_path))


def test_only_early_checks_look_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (check("late", finding(Grade.NOTE, 1.0), early=False), check("early", None))
    monkeypatch.setattr(diagnose, "CHECKS", checks)
    case = case_of(make_run(tmp_path, {}))
    assert [one.name for one in diagnose.examine(case, early=True).looked] == ["early"]
    assert len(diagnose.examine(case).findings) == 1


def test_a_finding_is_a_sentence_and_json() -> None:
    one = finding(Grade.HARMFUL, 0.5)
    assert one.sentence == "It is wrong: in 3 of 4 steps. update.lr may be lower."
    assert one.as_json()["grade"] == "harmful"
    assert list(one.as_json()["evidence"]) == [{"text": "in 3 of 4 steps.", "place": {"step": 3}}]


def test_the_summary_and_the_doctor_find_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path, every({"completion/truncated_fraction": 0.4}))
    assert summarize(folder).findings == diagnose.diagnose(case_of(folder)) != []


# --- what is looked for ----------------------------------------------------------------------------------------------


def test_every_check_is_registered_once_and_says_what_it_goes_by() -> None:
    names = [one.name for one in diagnose.CHECKS]
    assert len(names) == len(set(names)) >= 18
    modules = {path.stem for path in Path(diagnose.__file__).parent.joinpath("checks").glob("*.py")}
    known = {module.__name__.rpartition(".")[2] for module in diagnose.MODULES}
    helpers = modules - known - {"__init__"}
    package = "dinghai.lens.doctor.checks"
    assert not any(hasattr(__import__(f"{package}.{name}", fromlist=["x"]), "CHECKS") for name in helpers)
    for one in diagnose.CHECKS:
        assert one.fault.endswith("."), one.name
        for threshold in one.thresholds.values():
            assert len(threshold.why) > 20, one.name
            assert threshold.source != "paper" or "arXiv" in threshold.why or "published" in threshold.why, one.name


def test_no_threshold_is_a_clip_fraction_of_folklore() -> None:
    """Ranges such as 2 to 15 % would call nearly every healthy run sick."""
    for one in diagnose.CHECKS:
        for name, threshold in one.thresholds.items():
            assert not ("stopped" in name and threshold.value < 0.3), one.name


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text("utf-8") == markdown(), "dinghai doctor --markdown > docs/doctor.md"


def test_the_terminal_lists_every_check() -> None:
    out = io.StringIO()
    print_checks(Console(file=out, width=200))
    assert all(one.name in out.getvalue() for one in diagnose.CHECKS)
