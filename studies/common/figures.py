"""Figures of studies: curves over the steps with their spread, and each seed as a point with mean and interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from common.results import Results
from common.statistics import interval
from dinghai.view.figure_style import STYLES
from dinghai.view.palette import LIGHT, SERIES


def look(place: int) -> dict[str, Any]:
    """Colour and line of the first, second, ... series."""
    return {"color": LIGHT[SERIES[place % len(SERIES)]], "linestyle": STYLES[place % len(STYLES)]}


def draw_curve(axes: Axes, steps: Sequence[float], by_seed: Mapping[int, Sequence[float]], place: int) -> None:
    """The mean over the seeds at each step, and its interval as an area behind it. Points of no seed are left out."""
    means, lows, highs, x = [], [], [], []
    for i, step in enumerate(steps):
        values = [series[i] for series in by_seed.values() if i < len(series) and math.isfinite(series[i])]
        if values:
            found = interval(values)
            x.append(step)
            means.append(found.mean)
            lows.append(found.low if found.n > 1 else found.mean)
            highs.append(found.high if found.n > 1 else found.mean)
    axes.fill_between(x, lows, highs, color=look(place)["color"], alpha=0.18, linewidth=0)
    axes.plot(x, means, **look(place))


def draw_seeds(axes: Axes, x: float, values: Sequence[float], place: int) -> None:
    """Each seed a point at x, and beside them the mean with its interval."""
    if not values:
        return
    colour, found = look(place)["color"], interval(values)
    axes.plot([x] * len(values), values, "o", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
    if found.n > 1:
        axes.plot([x, x], [found.low, found.high], color=colour, linewidth=1.2)
    axes.plot([x], [found.mean], "_", color=colour, markersize=8, markeredgewidth=1.6)


def line_keys(results: Results, arms: Sequence[str]) -> list[Line2D]:
    """The keys of a legend for curves drawn in this order."""
    return [Line2D([], [], label=results.arms[arm], **look(place)) for place, arm in enumerate(arms)]


def point_keys(labels: Sequence[str]) -> list[Line2D]:
    """The keys of a legend for points drawn in this order."""
    return [
        Line2D([], [], label=label, color=look(place)["color"], marker="o", linestyle="none", markersize=4)
        for place, label in enumerate(labels)
    ]


def legend_on_top(figure: Figure, keys: Sequence[Line2D]) -> None:
    """One legend for all panels, above them and their titles."""
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), borderpad=0.1)


def power_axis(axis: Any) -> None:
    """An axis of decimal logarithms whose ticks are the numbers themselves, at powers of ten."""
    axis.set_major_locator(MultipleLocator(1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:g}"))


def step_axis(axes: Axes) -> None:
    """An x axis of whole steps."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def since_start(by_seed: Mapping[int, Sequence[float]]) -> dict[int, list[float]]:
    """Each series less its first value, so that seeds that begin apart can be compared."""
    return {seed: [value - values[0] for value in values] for seed, values in by_seed.items() if values}
