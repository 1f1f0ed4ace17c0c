"""The page of a study: one layout for all, made from numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.results import Results
from common.statistics import CONFIDENCE, Interval


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """A claim held against its criterion.

    claim:     in words
    criterion: what had to be measured for it to come out, as it was written down before the runs
    measured:  what was
    outcome:   "came out", "did not come out", ...: see `judge`
    """

    claim: str
    criterion: str
    measured: str
    outcome: str


@dataclass(frozen=True)
class Page:
    """What a study says. Everything that depends on numbers is computed by the study from its results.

    summary:    one or two sentences, the verdict in plain words
    literature: what is claimed elsewhere, each with its source
    notes:      what the numbers do not show, and what else to know
    figure:     caption of results/NAME.svg
    """

    title: str
    question: str
    summary: str
    findings: Sequence[Finding]
    figure: str
    tables: Sequence[Table]
    literature: Sequence[str]
    setting: Sequence[str]
    notes: Sequence[str] = field(default_factory=tuple)


# --- verdicts --------------------------------------------------------------------------------------------------------

CAME_OUT, REVERSED, NOT_TOLD_APART = "came out", "came out the other way round", "did not come out at this scale"


def judge(difference: Interval | None, expected: int) -> str:
    """The outcome of "one is larger (expected = 1), or smaller (-1), than the other": by the interval of a difference.

    It came out where the whole interval lies on the expected side of 0, the other way round where it lies on the other
    side, and did not come out where it holds 0 or there is none.
    """
    if difference is None or not (difference.above_zero or difference.below_zero):
        return NOT_TOLD_APART
    return CAME_OUT if (1 if difference.above_zero else -1) == expected else REVERSED


def together(outcomes: Sequence[str]) -> str:
    """Of several settings: it came out where it did so at one or more, and at none the other way round."""
    came, turned = outcomes.count(CAME_OUT), outcomes.count(REVERSED)
    if came and turned:
        return f"came out at {came} of {len(outcomes)} settings and the other way round at {turned}"
    if came or turned:
        return f"{CAME_OUT if came else REVERSED} at {came or turned} of {len(outcomes)} settings"
    return NOT_TOLD_APART


def by_outcome(findings: Sequence[Finding]) -> str:
    """The claims by what became of them, a sentence for each outcome, in the order of the findings."""
    claims: dict[str, list[str]] = {}
    for finding in findings:
        claims.setdefault(finding.outcome, []).append(finding.claim)
    return " ".join(
        f"{outcome[0].upper()}{outcome[1:]}: {', '.join(f'“{claim}”' for claim in told)}."
        for outcome, told in claims.items()
    )


# --- numbers as text -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How a number is written: a Python format specification, a factor, and the unit behind it."""

    specification: str
    factor: float = 1.0
    unit: str = ""

    def __call__(self, value: float) -> str:
        return self.number(value) + self.unit

    def number(self, value: float) -> str:
        """Without the unit, and never as -0.0."""
        text = format(self.factor * value, self.specification)
        return text.replace("-", "") if not any(digit in text for digit in "123456789") else text


percent = Format(".1f", 100, " %")
points = Format("+.1f", 100, " points")  # of a difference of two fractions


def significant(digits: int = 3, sign: bool = False) -> Format:
    """A format with so many significant digits."""
    return Format(f"{'+' if sign else ''}.{digits}g")


def with_interval(found: Interval | None, form: Format) -> str:
    """mean (low to high); the mean alone where a single seed has no interval."""
    if found is None:
        return "–"
    if found.n < 2:
        return f"{form(found.mean)} (one seed)"
    return f"{form(found.mean)} ({form.number(found.low)} to {form.number(found.high)})"


def lines(texts: Iterable[str]) -> str:
    """Several lines within one cell of a table."""
    return "<br>".join(texts)


# --- markdown --------------------------------------------------------------------------------------------------------


def markdown(page: Page, results: Results) -> str:
    """The whole page. The same results give the same text."""
    name = results.study
    parts = [
        f"# {page.title}",
        f"**Question.** {page.question}",
        f"**In short.** {page.summary}",
        f"![{page.title}]({name}.svg)",
        page.figure,
        "## Verdict",
        _table(
            ["claim", "criterion, stated beforehand", "measured", "verdict"],
            [[f.claim, f.criterion, f.measured, f"**{f.outcome}**"] for f in page.findings],
            "llll",
        ),
        "## Numbers",
        f"Mean over {len(results.seeds)} seeds and the {CONFIDENCE:.0%} t-interval; differences are paired by seed.",
    ]
    for table in page.tables:
        parts += [f"**{table.caption}**", _table(table.head, table.rows, "l" + "r" * (len(table.head) - 1))]
    parts += ["## What the literature says", _bullets(page.literature)]
    parts += ["## Setting", _bullets([*page.setting, *_made(results)]), _arms(results)]
    if page.notes:
        parts += ["## To be read with it", _bullets(page.notes)]
    command = f"python studies/{name}.py --seeds {len(results.seeds)}"
    parts.append(f"Made by `{command}` from the runs in [{name}.json]({name}.json).")
    return "\n\n".join(parts) + "\n"


def _made(results: Results) -> list[str]:
    shared = ", ".join(f"`{key}` {_value(value)}" for key, value in results.settings.items())
    made = results.made
    return [
        f"Shared by all runs: {shared}.",
        f"Seeds {', '.join(map(str, results.seeds))}; {made['date']}, {made['machine']}, Python {made['python']}, "
        f"PyTorch {made['torch']}.",
    ]


def _arms(results: Results) -> str:
    rows = []
    for key, label in results.arms.items():
        changes = ", ".join(f"`{k} {_value(v)}`" for k, v in results.changes[key].items()) or "the base as it is"
        rows.append([label, changes, str(results.failed(key) or "none")])
    return _table(["runs", "what they change", "failed"], rows, "llr")


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    rule = ["---:" if letter == "r" else "---" for letter in align]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, rule, *rows])
