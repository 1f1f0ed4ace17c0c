"""What `dinghai replay` prints: a comparison as tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinghai.lens.replay import FIRST_ORDER, SIGNAL_REGIONS
from dinghai.lens.replay_chunk import Example
from dinghai.lens.replay_compare import (
    Comparison,
    cosine_of,
    removed_share,
    stopped_fraction,
    value,
)
from dinghai.lens.words import counted, percent
from dinghai.text import safe
from dinghai.view.token_text import load_token_text, tokenizer_file, visible

UPDATES_SHOWN = 6
ROOM_FOR_REGIONS = 100  # columns
REGIONS_SHOWN = 4
EXAMPLES_OF_FEW, FEW = 3, 4  # tokens of each candidate, where there are so few


def print_comparison(run_folder: Path, found: Comparison, console: Console | None = None) -> None:
    """All tables, then what has to be known about them."""
    console = console or Console()
    wide = console.width >= ROOM_FOR_REGIONS
    steps = found.steps
    which = f"step {steps[0]}" if len(steps) == 1 else f"{counted(len(steps), 'step')} from {steps[0]} to {steps[-1]}"
    signal = int(value(found.own_sums, "signal"))
    console.print(
        _plain(
            f"{run_folder.name}: {found.own.label}, {found.own.policy_loss.reduction.name}\n"
            f"{which}, {counted(len(found.updates), 'update')} a batch, {found.tokens:,} rows, {signal:,} with a signal"
        )
    )
    if found.as_recorded == found.tokens:
        console.print(_plain(f"the run's own settings reproduce all {found.tokens:,} recorded decisions"))
    console.print()
    console.print(_totals(found, wide))
    if len(found.updates) > 1:
        console.print()
        console.print(_by_update(found))
    examples = _examples(run_folder, found, wide)
    if examples is not None:
        console.print(_plain("\ntokens on which they differ, where their gradients differ most"))
        console.print(examples)
    console.print()
    sentences = list(found.notes)
    for one in found.compared:
        sentences += [f"{one.candidate.label}: {sentence}" for sentence in one.candidate.warnings]
    for sentence in [*sentences, FIRST_ORDER]:
        console.print(_plain(sentence))


def _rows(found: Comparison) -> list[tuple[str, np.ndarray]]:
    """Name and sums: the run, then the candidates with their numbers."""
    numbered = [(f"{place}  {one.candidate.label}", one.sums) for place, one in enumerate(found.compared, start=1)]
    return [("this run", found.own_sums), *numbered]


def _table(first: str) -> Table:
    table = _empty()
    table.add_column(first, overflow="fold", min_width=16)
    return table


def _empty() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _totals(found: Comparison, with_regions: bool) -> Table:
    """Each objective in a row: shares of the tokens with a signal, and of the gradient they would have."""
    regions = _regions(found) if with_regions else []
    table = _table("objective")
    by_region = [f"in\n{region}" for region in regions]
    for heading in ("stopped", "gradient\nremoved", *by_region, "cosine", "differ"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, sums_UK in _rows(found):
        table.add_row(
            _plain(name),
            percent(stopped_fraction(sums_UK)),
            percent(removed_share(sums_UK)),
            *(percent(removed_share(sums_UK, region)) for region in regions),
            _cosine(cosine_of(sums_UK, found.own_sums)),
            f"{int(value(sums_UK, 'differ')):,}" if sums_UK is not found.own_sums else "",
        )
    return table


def _regions(found: Comparison) -> list[str]:
    """Those in which any of the objectives removes most gradient, in their usual order."""
    everything = [sums for _, sums in _rows(found)]
    most = {region: max(removed_share(sums, region) for sums in everything) for region in SIGNAL_REGIONS}
    chosen = sorted((region for region in most if most[region] > 0), key=lambda region: -most[region])[:REGIONS_SHOWN]
    return [region for region in SIGNAL_REGIONS if region in chosen]


def _by_update(found: Comparison) -> Table:
    """Gradient removed and cosine by the index of the update within its batch."""
    shown = range(min(len(found.updates), UPDATES_SHOWN))
    table = _table("removed, cosine")
    for place in shown:
        table.add_column(f"update {found.updates[place] + 1}", justify="right", no_wrap=True)
    for name, sums_UK in _rows(found):
        cells = [
            f"{percent(removed_share(sums_UK[place]))} {_cosine(cosine_of(sums_UK[place], found.own_sums[place])):>6}"
            for place in shown
        ]
        table.add_row(_plain(name), *cells)
    return table


def _examples(run_folder: Path, found: Comparison, with_regions: bool) -> Table | None:
    """Tokens with another fate, of each candidate; None where there are none."""
    token_text = load_token_text(tokenizer_file(run_folder))
    text = visible(token_text) if token_text else "⟨{}⟩".format
    table = _empty()
    for heading in ("", "step", "update", "prompt", "sample", "token"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold", min_width=5)
    for heading in ("ratio", "A"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("run → replayed", no_wrap=True)
    if with_regions:
        table.add_column("", overflow="fold")
    each = EXAMPLES_OF_FEW if len(found.compared) <= FEW else 1
    for place, one in enumerate(found.compared, start=1):
        for at in one.examples[:each]:
            table.add_row(str(place), *_cells(at, text(at.token))[: len(table.columns) - 1])
    return table if table.row_count else None


def _cells(at: Example, text: str) -> list[Text]:
    where = [str(n) for n in (at.step, at.update + 1, at.group, at.sample, at.position + 1)]
    region = f"{at.own[0]} → {at.other[0]}" if at.own[0] != at.other[0] else at.own[0]
    cells = (*where, text, f"{at.ratio:.4g}", f"{at.advantage:.3g}", f"{at.own[1]} → {at.other[1]}", region)
    return [_plain(cell) for cell in cells]


def _cosine(found: float) -> str:
    """Three digits after the point; 1.000 only where it is 1 but for rounding."""
    if math.isnan(found):
        return "–"
    if 0.9995 <= found < 1 - 1e-9:
        return ">0.999"
    return f"{found:.3f}"


def _plain(text: str) -> Text:
    return Text(safe(text, newline="\n"))
