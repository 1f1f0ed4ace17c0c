"""What the doctor finds in a run, for the terminal and as JSON. Every text has gone through `safe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dinghai.errors import DinghaiError
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.diagnose import Diagnosis, examine
from dinghai.lens.doctor.finding import GRADE_MEANING, Evidence, Finding, Grade, Place, opened
from dinghai.lens.summary import load_config, load_run_metrics
from dinghai.lens.tokens import read_tokens
from dinghai.lens.words import counted
from dinghai.text import safe
from dinghai.view.token_text import load_token_text, speller, tokenizer_file

_BEFORE = 16  # tokens that are shown before the one that is meant
_STYLES = {Grade.INVALID: "bold red", Grade.HARMFUL: "red", Grade.WASTEFUL: "yellow", Grade.NOTE: "cyan"}


@dataclass(frozen=True)
class RunDiagnosis:
    """A run, what was found in it, and what could not be looked at."""

    case: Case
    diagnosis: Diagnosis
    notes: list[str]
    token_text: dict[Place, str]  # of the places that name a token: the end of the text up to it

    @property
    def findings(self) -> list[Finding]:
        return self.diagnosis.findings


def diagnosis_of(run_folder: Path) -> RunDiagnosis:
    """Let all checks look at a run.

    Raises:
        InputError: its metrics are damaged.
    """
    config, notes = load_config(run_folder)
    metrics = load_run_metrics(run_folder)
    case = Case(run_folder, config or {}, metrics)
    diagnosis = examine(case)
    notes += metrics.notes + diagnosis.notes + _unread(case, diagnosis)
    return RunDiagnosis(case, diagnosis, notes, _token_texts(case, diagnosis.findings))


def _unread(case: Case, diagnosis: Diagnosis) -> list[str]:
    """What of the trace could not be looked at, and so which checks saw nothing."""
    blind = counted(sum(check.of_tokens for check in diagnosis.looked), "check")
    try:
        incomplete = case.reader.incomplete()
    except DinghaiError as error:
        return [f"{error}; {blind} of tokens saw nothing"]
    notes = [f"step {step} of the trace is left out: {why}" for step, why in sorted(incomplete.items())[:3]]
    if len(incomplete) > 3:
        notes.append(f"so are {len(incomplete) - 3} more steps")
    if not case.steps:
        why = "trace.enabled was off" if case.table("trace").get("enabled") is False else "no step of it is complete"
        notes.append(f"there is no trace ({why}): {blind} of tokens saw nothing")
    unreadable = [step for step in case.steps if case.tokens(step) is None]
    if unreadable:
        notes.append(f"the tokens of {counted(len(unreadable), 'step')} cannot be read, first of step {unreadable[0]}")
    return notes


def _token_texts(case: Case, findings: Sequence[Finding]) -> dict[Place, str]:
    places = {evidence.place for finding in findings for evidence in finding.evidence}
    places = {place for place in places if None not in (place.step, place.sample, place.position)}
    file = tokenizer_file(case.folder)
    token_text = load_token_text(file) if places else None
    if token_text is None:
        return {}
    spell = speller(token_text)
    texts = {}
    for place in places:
        ids = _tokens_up_to(case, place)
        if ids:
            texts[place] = "".join(spell(ids).text)
    return texts


def _tokens_up_to(case: Case, place: Place) -> list[int]:
    """The last tokens of a completion up to the one that is meant, that included; empty where the trace lacks it."""
    assert place.step is not None
    assert place.position is not None
    try:
        tokens = read_tokens(case.reader, place.step, None, ["sample", "position", "token"])
    except DinghaiError:
        return []
    mine = tokens.rows(tokens.sample == place.sample)
    of = dict(zip(mine.position.tolist(), mine.token.tolist(), strict=True))
    wanted = range(max(0, place.position - _BEFORE), place.position + 1)
    return [of[position] for position in wanted] if all(position in of for position in wanted) else []


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_json(run: RunDiagnosis) -> dict[str, Any]:
    """For other programs: `findings` as `Finding.as_json`; evidence that names a token has `up_to_token`, the text that
    ends with it."""
    findings = []
    for finding in run.findings:
        found = finding.as_json()
        for told, evidence in zip(found["evidence"], finding.evidence, strict=True):
            if evidence.place in run.token_text:
                told["up_to_token"] = run.token_text[evidence.place]
        findings.append(found)
    return {
        "run": str(run.case.folder),
        "state": run.case.state,
        "steps": _steps(run.case),
        "steps_planned": run.case.setting("run.steps"),
        "checks": [check.name for check in run.diagnosis.looked],
        "steps_read": run.case.steps,
        "findings": findings,
        "notes": run.notes,
    }


def _steps(case: Case) -> int:
    return int(case.training[-1]["step"]) if case.training else 0


# --- terminal --------------------------------------------------------------------------------------------------------


def print_diagnosis(console: Console, run: RunDiagnosis) -> None:
    """The findings, the gravest first, and what could not be looked at."""
    console.print(Text(safe(_heading(run))))
    for number, finding in enumerate(run.findings, start=1):
        console.print()
        _print_finding(console, run, number, finding)
    if not run.findings:
        console.print(Text(f"\nNothing looks wrong to {counted(len(run.diagnosis.looked), 'check')}.", style="green"))
    if run.findings:
        console.print()
        for grade in sorted({finding.grade for finding in run.findings}, reverse=True):
            console.print(Text(f"{grade.name.lower()}: {GRADE_MEANING[grade]}", style="dim"))
    if run.notes:
        console.print()
        for note in run.notes:
            console.print(_two_columns("note", safe(note)))


def _heading(run: RunDiagnosis) -> str:
    planned = run.case.setting("run.steps")
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    read = f"the tokens of {counted(len(run.case.steps), 'step')}" if run.case.steps else "no tokens"
    return (
        f"{run.case.folder}: {run.case.state}, {_steps(run.case):,}{of} steps; "
        f"{counted(len(run.diagnosis.looked), 'check')} looked at its metrics and {read}"
    )


def _print_finding(console: Console, run: RunDiagnosis, number: int, finding: Finding) -> None:
    title = Text(f"{number}. {safe(finding.title)}", style="bold")
    title.append(f"  {finding.grade.name.lower()}", style=_STYLES[finding.grade])
    title.append(f"  {finding.check}", style="dim")
    console.print(title)
    for place, evidence in enumerate(finding.evidence):
        console.print(_two_columns("seen" if place == 0 else "", safe(opened(evidence.text)), _where(run, evidence)))
    console.print(_two_columns("cause", safe(opened(finding.cause))))
    console.print(_two_columns("fix", safe(opened(finding.fix))))
    console.print(_two_columns("shown", safe(_shown(run.case, finding))))


def _two_columns(name: str, text: str, dim: str = "") -> Padding:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=5, style="dim")
    grid.add_column(ratio=1, overflow="fold")
    body = Text(text)
    if dim:
        body.append(f"\n{dim}", style="dim")
    grid.add_row(Text(name), body)
    return Padding(grid, (0, 0, 0, 3))


def _where(run: RunDiagnosis, evidence: Evidence) -> str:
    """In the words and numbers of the pages, which count updates and tokens from 1."""
    place = evidence.place
    if place == Place(step=place.step) and f"step {place.step}" in evidence.text:
        return ""
    named = [
        f"{name} {value}"
        for name, value in (
            ("step", place.step),
            ("update", None if place.update is None else place.update + 1),
            ("prompt", place.group),
            ("completion", place.sample),
            ("token", None if place.position is None else place.position + 1),
        )
        if value is not None
    ]
    text = run.token_text.get(place)
    return ", ".join(named) + (f", which ends …{safe(text)}" if text else "")


def _shown(case: Case, finding: Finding) -> str:
    report = case.folder / "report.html"
    live = f"`dinghai watch {case.folder}`, section {finding.view}"
    return f"{report}#{finding.view}, or {live}" if report.is_file() else live
