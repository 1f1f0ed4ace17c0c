"""The figure of a replay: what each objective removes of the gradient, and where it points. Needs matplotlib."""

from __future__ import annotations

import math
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinghai.errors import InputError
from dinghai.trace.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dinghai.lens.replay_compare import Comparison

ROWS_AT_MOST = 30
_LABEL_CHARACTERS = 30  # of a line
_LINE, _ROW, _BAR = 0.125, 0.1, 0.14  # inches: a line of a label, what lies between two rows, a bar


def write_figure(found: Comparison, path: Path) -> Path:
    """Write the figure as .svg or .png, by the file's ending. The same comparison gives the same bytes.

    Raises:
        InputError: matplotlib is not installed.
        RunFailed: the file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib, which is not installed: pip install 'dinghai[figures]'")
    from dinghai.view.figure_style import as_png, as_svg, figure_settings

    with figure_settings():
        drawn = replay_figure(found)
        content = as_svg(drawn) if path.suffix == ".svg" else as_png(drawn)
    write_atomically(path, content, then="run the command again")
    return path


def replay_figure(found: Comparison) -> Figure:
    """A row for the run and for each candidate: gradient removed by region, and the cosine with the run's gradient.

    To be drawn within `figure_settings`.
    """
    from dinghai.view.figure_style import LEGEND_ROW, WIDE, new_figure

    rows = [("this run: " + found.own.label, found.own_sums)]
    rows += [(one.candidate.label, one.sums) for one in found.compared[: ROWS_AT_MOST - 1]]
    labels = [_label(text) for text, _ in rows]
    heights = [_LINE * (1 + label.count("\n")) + _ROW for label in labels]
    centres = [sum(heights[:place]) + height / 2 for place, height in enumerate(heights)]
    figure = new_figure(WIDE, sum(heights) + 0.5 + 2 * LEGEND_ROW)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    sums = [sums_UK for _, sums_UK in rows]
    _draw_removed(left, sums, centres)
    _draw_cosines(right, sums, centres, found.updates)
    left.set_yticks(centres, labels)
    left.tick_params(axis="y", length=0)
    left.set_ylim(sum(heights), 0)
    return figure


def _draw_removed(axes: Axes, sums: list[Any], centres: list[float]) -> None:
    from dinghai.lens.replay import SIGNAL_REGIONS
    from dinghai.lens.replay_compare import removed_share, value
    from dinghai.view.figure_style import from_zero, legend_above, percent_axis, region_fill, region_patch

    before = [0.0] * len(sums)
    handles = []
    for region in SIGNAL_REGIONS:
        shares = [removed_share(sums_UK, region) for sums_UK in sums]
        if not any(share > 0 for share in shares):
            continue
        stopped = [value(sums_UK, f"stopped/{region}") > 0 for sums_UK in sums]
        for place, share in enumerate(shares):
            if math.isfinite(share):
                fill = region_fill(region, stopped[place])
                axes.barh(centres[place], share, _BAR, left=before[place], linewidth=0, **fill)
                before[place] += share
        handles.append(region_patch(region, any(stopped)))
    axes.set_xlim(*from_zero(before))
    axes.set_xlabel("gradient removed (hatched: stopped)")
    axes.grid(axis="x")
    percent_axis(axes.xaxis)
    if handles:
        legend_above(axes, handles, columns=min(4, len(handles)))


def _draw_cosines(axes: Axes, sums: list[Any], centres: list[float], updates: list[int]) -> None:
    from matplotlib.lines import Line2D

    from dinghai.lens.replay_compare import cosine_of
    from dinghai.view.figure_style import legend_above
    from dinghai.view.palette import LIGHT

    lowest = 1.0
    own_UK = sums[0]
    for centre, sums_UK in zip(centres, sums, strict=True):
        by_update = [cosine_of(*both) for both in zip(sums_UK, own_UK, strict=True)] if len(updates) > 1 else []
        total = cosine_of(sums_UK, own_UK)
        seen = [cosine for cosine in (*by_update, total) if math.isfinite(cosine)]
        if not seen:
            continue
        lowest = min(lowest, *seen)
        axes.plot([min(seen), max(seen)], [centre, centre], color=LIGHT["soft"], linewidth=0.6, zorder=1)
        axes.plot(by_update, [centre] * len(by_update), "|", color=LIGHT["c0"], markersize=6, zorder=2)
        axes.plot([total], [centre], "o", color=LIGHT["ink"], markersize=3.5, zorder=3)
    axes.set_xlim(min(0.9, math.floor(lowest * 10 - 0.2) / 10), 1.02)
    axes.set_xlabel("cosine with the run's gradient")
    axes.grid(axis="x")
    handles = [Line2D([], [], marker="o", color=LIGHT["ink"], linestyle="", markersize=3.5, label="all updates")]
    if len(updates) > 1:
        tick: dict[str, Any] = {"marker": "|", "color": LIGHT["c0"], "linestyle": "", "markersize": 6}
        handles.append(Line2D([], [], label="each update of the batch", **tick))
    legend_above(axes, handles)


def _label(text: str) -> str:
    """In lines; each word drawable by itself, since anybody may have named it."""
    from dinghai.view.figure_style import drawable

    lines = textwrap.wrap(text, _LABEL_CHARACTERS, break_long_words=False)
    return "\n".join(" ".join(drawable(word) for word in line.split()) for line in lines)
