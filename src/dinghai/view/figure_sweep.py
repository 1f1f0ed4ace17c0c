"""The figure of a sweep: every seed a point, the mean of each setting with its interval. Needs matplotlib.

It draws the data that `dinghai.sweep.chart` makes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from dinghai.view.figure_style import LEGEND_ROW, NARROW, WIDE, drawable, legend_above, new_figure
from dinghai.view.palette import LIGHT, SERIES

_HEIGHT = 2.2  # inches of a panel
_DODGE = 0.5  # share of the distance between two neighbours on the x axis that their series take
_MARKERS = "osD^vP"  # of means: the first series, the second, ...
_TICKS_AT_MOST = 7
_LEGEND_COLUMNS = 3
_BESIDE = 3.5  # points of type: how far left of its mean a seed stands
_SEED: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 2.4, "alpha": 0.5, "markeredgewidth": 0}


def sweep_figure(data: dict[str, Any]) -> Figure:
    """A panel beside the other; all share the y axis."""
    panels = data["panels"]
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    handles = [_handle(n, series["name"]) for n, series in enumerate(panels[0]["series"]) if series["name"]]
    handles.append(Line2D([], [], label="a seed", color=LIGHT["soft"], **_SEED))
    handles.append(Line2D([], [], label="mean ± 95 %", color=LIGHT["soft"]))
    if any(map(_has_failed, panels)):
        handles.append(Line2D([], [], label="failed", color=LIGHT["bad"], marker="x", markersize=3, linestyle=""))
    legend_rows = math.ceil(len(handles) / _LEGEND_COLUMNS)
    titles = 0.2 * rows if any(panel["title"] for panel in panels) else 0.0
    figure = new_figure(NARROW if columns == 1 else WIDE, _HEIGHT * rows + legend_rows * LEGEND_ROW + titles)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place < len(panels):
            _draw(axes, panels[place])
            if place % columns == 0:
                axes.set_ylabel(f"{drawable(data['metric'])}\nat the end")
        else:
            axes.set_visible(False)
    if len(panels) == 1:
        legend_above(grid[0, 0], handles, columns=_LEGEND_COLUMNS)
    else:
        figure.legend(handles=handles, loc="outside upper left", ncols=2 * _LEGEND_COLUMNS)
    return figure


def _draw(axes: Axes, panel: dict[str, Any]) -> None:
    x_of = _dodged(panel)
    beside = axes.transData + ScaledTranslation(-_BESIDE / 72, 0, axes.figure.dpi_scale_trans)
    for number, series in enumerate(panel["series"]):
        colour, marker = LIGHT[SERIES[number % len(SERIES)]], _MARKERS[number % len(_MARKERS)]
        for point in series["points"]:
            x = x_of(point["x"], number)
            if point["mean"] is not None:
                axes.plot([x] * len(point["values"]), point["values"], **_SEED, color=colour, transform=beside)
                axes.plot([x], [point["mean"]], marker, color=colour, markersize=4)
                if point["low"] is not None:
                    axes.plot([x, x], [point["low"], point["high"]], "-", color=colour)
                # Points beside the mean are drawn by a transform of their own, which the axis would not make room for.
                axes.update_datalim([(x, value) for value in point["values"]])
            if point["failed"]:
                axes.annotate(
                    f"×{point['failed']}", (x, 0), (0, 2), color=LIGHT["bad"], size=6, ha="center",
                    xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                )  # fmt: skip
    axes.grid(axis="y")
    axes.margins(x=0.08, y=0.12 if _has_failed(panel) else 0.05)
    axes.autoscale_view()
    axes.set_xlabel(drawable(panel["x"]["label"]))
    if panel["title"]:
        axes.set_title(drawable(panel["title"]), loc="left")
    _set_x_axis(axes, panel)


def _has_failed(panel: dict[str, Any]) -> bool:
    return any(point["failed"] for series in panel["series"] for point in series["points"])


def _dodged(panel: dict[str, Any]) -> Any:
    """Where the point of a series stands: beside those of the other series that have the same x."""
    log, many = panel["x"]["log"], len(panel["series"])
    xs = sorted({_scaled(p["x"], log) for series in panel["series"] for p in series["points"]})
    step = min((b - a for a, b in itertools.pairwise(xs)), default=1.0) * _DODGE / max(1, many)

    def place(x: float, number: int) -> float:
        moved = _scaled(x, log) + (number - (many - 1) / 2) * step
        return math.exp(moved) if log else moved

    return place


def _scaled(x: float, log: bool) -> float:
    return math.log(x) if log else x


def _set_x_axis(axes: Axes, panel: dict[str, Any]) -> None:
    x = panel["x"]
    places = sorted({point["x"] for series in panel["series"] for point in series["points"]})
    if x["ticks"] is not None:
        axes.set_xticks([t["x"] for t in x["ticks"]], [drawable(t["text"]) for t in x["ticks"]])
        if sum(len(t["text"]) for t in x["ticks"]) > 30:
            axes.tick_params(axis="x", labelrotation=30)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        return
    if x["log"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if len(places) <= _TICKS_AT_MOST:
        axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _handle(number: int, name: str) -> Line2D:
    colour, marker = LIGHT[SERIES[number % len(SERIES)]], _MARKERS[number % len(_MARKERS)]
    return Line2D([], [], color=colour, marker=marker, markersize=4.5, linestyle="", label=drawable(name))
