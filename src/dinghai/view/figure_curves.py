"""Figures of what changed over the steps of a run, and over the updates of a batch. Needs matplotlib.

They draw the chart data that the report shows: `dinghai.view.report_charts`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dinghai.view.figure_style import (
    LEGEND_ROW,
    NARROW,
    STYLES,
    drawable,
    legend_above,
    new_figure,
    percent_axis,
    region_fill,
    region_patch,
)
from dinghai.view.palette import LIGHT, SERIES

Chart = dict[str, Any]

_HEIGHT = 1.8  # inches, without the legend
_UNITS = ("nats a token", "tokens", "seconds a step")  # of the notes of charts, those that begin with a unit
_AREA_POINTS = 120  # of an area, each the mean of its steps: more would fray
_POINTS_WITH_DOTS = 12  # a curve of so few shows where it was measured


def curve(chart: Chart) -> Figure:
    """Lines over the steps; where a point stands for several steps, the range of these lies behind it."""
    rows = math.ceil(len(chart["series"]) / 2) if len(chart["series"]) > 1 else 0
    figure = new_figure(NARROW, _HEIGHT + rows * LEGEND_ROW)
    axes = figure.subplots()
    handles = []
    for place, series in enumerate(chart["series"]):
        style: dict[str, Any] = {"color": LIGHT[SERIES[place % len(SERIES)]], "linestyle": STYLES[place % len(STYLES)]}
        points = [(point[0], _value(point[1]), *map(_value, point[2:])) for point in series["points"]]
        x, y = np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points])
        if any(len(p) > 2 for p in points):
            low, high = (np.array([p[i] if len(p) > 2 else p[1] for p in points]) for i in (2, 3))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(x, y, **style, marker="o" if len(points) <= _POINTS_WITH_DOTS else None, markersize=2.5)
        lost = x[~np.isfinite(y)]
        if len(lost):
            top = axes.get_xaxis_transform()
            axes.plot(lost, np.ones_like(lost), "x", color=LIGHT["bad"], markersize=4, transform=top, clip_on=False)
        handles.append(Line2D([], [], label=drawable(series["name"]), **style))
    if not any(
        _is_seen(number) for series in chart["series"] for _, *numbers in series["points"] for number in numbers
    ):
        axes.set_ylim(0, 0.01 if chart["share"] else 1)  # nothing happened: an axis about zero would go below it
    _dress(axes, chart)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if len(handles) > 1:
        legend_above(axes, handles, columns=2)
    return figure


def stacked_steps(chart: Chart, stopped: Collection[str]) -> Figure:
    """Regions upon each other over the steps. `stopped`: those in which the rule stops tokens."""
    figure = new_figure(NARROW, _HEIGHT + math.ceil(len(chart["series"]) / 3) * LEGEND_ROW)
    axes = figure.subplots()
    steps = sorted({point[0] for series in chart["series"] for point in series["points"]})
    every = math.ceil(len(steps) / _AREA_POINTS)
    starts = steps[::every]
    below = np.zeros(len(starts))
    for series in chart["series"]:
        values = {point[0]: _value(point[1]) for point in series["points"]}
        above = below + _means([values.get(step, 0.0) for step in steps], every)
        fill = region_fill(series["name"], series["name"] in stopped)
        axes.fill_between(starts, below, above, linewidth=0, **fill)
        below = above
    _dress(axes, chart)
    axes.set_ylim(0, chart["top"])
    axes.set_xlim(starts[0], starts[-1] if len(starts) > 1 else starts[0] + 1)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    legend_above(axes, [region_patch(s["name"], s["name"] in stopped) for s in chart["series"]], columns=3)
    return figure


def _means(values: Sequence[float], every: int) -> np.ndarray:
    """Of each so many neighbours, without those that are not finite; NaN where none is left."""
    parts = [[v for v in values[i : i + every] if math.isfinite(v)] for i in range(0, len(values), every)]
    return np.array([math.fsum(part) / len(part) if part else math.nan for part in parts])


def bars_by_update(chart: Chart, stopped: Collection[str]) -> Figure:
    """Bars over the updates of a batch: regions upon each other, or measures beside each other."""
    rows = math.ceil(len(chart["series"]) / 3) if len(chart["series"]) > 1 or chart["stacked"] else 0
    figure = new_figure(NARROW, _HEIGHT + rows * LEGEND_ROW)
    axes = figure.subplots()
    updates = 1 + np.arange(len(chart["labels"]))
    handles: list[Any] = []
    below = np.zeros(len(updates))
    many = 1 if chart["stacked"] else max(1, len(chart["series"]))
    for place, series in enumerate(chart["series"]):
        heights = np.array([_value(value) for value in series["values"]])
        if chart["stacked"]:
            fill = region_fill(series["name"], series["name"] in stopped)
            axes.bar(updates, heights, 0.7, bottom=below, linewidth=0.2, **fill)
            below = below + np.nan_to_num(heights)
            handles.append(region_patch(series["name"], series["name"] in stopped))
        else:
            shift = (place - (many - 1) / 2) * 0.8 / many
            colour = LIGHT[SERIES[place % len(SERIES)]]
            handles.append(axes.bar(updates + shift, heights, 0.7 / many, color=colour, label=drawable(series["name"])))
    _dress(axes, chart)
    axes.set_xlabel("update of the batch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlim(0.4, len(updates) + 0.6)
    if len(handles) > 1 or chart["stacked"]:
        legend_above(axes, handles, columns=min(3, len(handles)))
    return figure


def _dress(axes: Axes, chart: Chart) -> None:
    """Label, unit and grid of the y axis."""
    unit = next((unit for unit in _UNITS if chart["note"].startswith(unit)), None)
    title = chart["title"].removesuffix(", by update")
    axes.set_ylabel(f"{title}\n({unit})" if unit else _broken(title))
    axes.grid(axis="y")
    axes.margins(x=0.02)
    if chart["share"]:
        percent_axis(axes.yaxis)


def _broken(title: str) -> str:
    """A long label in two lines, broken near its middle."""
    if len(title) <= 24:
        return title
    spaces = [place for place, character in enumerate(title) if character == " "]
    middle = min(spaces, key=lambda place: abs(place - len(title) / 2), default=None)
    return title if middle is None else f"{title[:middle]}\n{title[middle + 1 :]}"


def _is_seen(value: float | str | None) -> bool:
    """Whether it differs from 0 and has a place on an axis."""
    return math.isfinite(_value(value)) and _value(value) != 0


def _value(value: float | str | None) -> float:
    """A number of chart data, where what is not finite is a word. Infinities have no place on an axis: NaN too."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan
