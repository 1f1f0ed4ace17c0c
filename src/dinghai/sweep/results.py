"""What a sweep leaves in its folder, sweep.md, sweep.csv and sweep.svg, and shows in the terminal."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinghai.errors import RunFailed
from dinghai.files import write_atomically
from dinghai.sweep.chart import chart
from dinghai.sweep.plan import Plan, counted
from dinghai.sweep.table import Form, Goal, Row, as_csv, as_markdown, columns, measure, notes, tabulate
from dinghai.sweep.trials import Outcome
from dinghai.text import safe


@dataclass(frozen=True)
class Results:
    """Of a sweep: its rows, and the files that hold them. `missing` says why one of them was not written."""

    plan: Plan
    rows: list[Row]
    metric: str
    goal: Goal
    files: list[Path]
    missing: str | None


def write_results(plan: Plan, outcomes: Sequence[Outcome], folder: Path, metric: str, goal: Goal) -> Results:
    """Measures the runs and writes the three files. The same runs give the same bytes.

    Raises:
        InputError: no run has the metric.
        RunFailed: a file cannot be written.
    """
    measured = measure(plan, outcomes, metric)
    rows = tabulate(plan, measured, goal)
    contents: dict[str, str | bytes] = {
        "sweep.md": as_markdown(plan, rows, outcomes, metric, goal),
        "sweep.csv": as_csv(plan, measured),
    }
    missing = None
    if not any(row.end for row in rows):
        missing = "there is no figure, since no run has a value"
    elif find_spec("matplotlib") is None:
        missing = "there is no figure, since matplotlib is not installed: pip install 'dinghai[figures]'"
    else:
        contents["sweep.svg"] = _figure(plan, rows, metric)
    for name, content in contents.items():
        try:
            write_atomically(folder / name, content)
        except OSError as error:
            hint = "free space" if error.errno == errno.ENOSPC else "mend that"
            raise RunFailed(f"{folder / name} cannot be written: {error.strerror}; {hint}, and run again") from error
    return Results(plan, rows, metric, goal, [folder / name for name in contents], missing)


def _figure(plan: Plan, rows: Sequence[Row], metric: str) -> bytes:
    from dinghai.view.figure_style import as_svg, figure_settings
    from dinghai.view.figure_sweep import sweep_figure

    with figure_settings():
        return as_svg(sweep_figure(chart(plan, rows, metric)))


def print_results(results: Results, console: Console | None = None) -> None:
    """The table, how to read it, and where it is."""
    console = console or Console(highlight=False)
    plan = results.plan
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    found = columns(plan, results.rows, Form(results.rows))
    for number, title in enumerate(found):
        is_number = len(plan.axes) <= number < len(found) - 1
        table.add_column(Text(title), justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for line in zip(*found.values(), strict=True):
        table.add_row(*map(Text, line))
    console.print()
    console.print(
        Text(f"{safe(results.metric)} at the end, over {counted(len(plan.seeds), 'seed')} (n: those with a value)")
    )
    console.print(table)
    console.print()
    for note in notes(plan, results.rows, results.goal):
        console.print(Text(note))
    console.print()
    console.print(Text(f"Written: {', '.join(safe(str(path)) for path in results.files)}"), soft_wrap=True)
    if results.missing:
        console.print(Text(results.missing))
