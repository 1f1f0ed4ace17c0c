"""Figures of which ratios the tokens have, and of where the rule takes their gradient. Needs matplotlib.

They draw a census (`dinghai.lens.census`) and what is known of the rule (`dinghai.lens.rule_facts`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dinghai.view.figure_map import MAP_COLOURS, Census, RuleFacts, bounds_of, ratio_of, stopped_regions
from dinghai.view.figure_style import (
    HATCH,
    LEGEND_ROW,
    NARROW,
    STYLES,
    count_axis,
    drawable,
    from_zero,
    legend_above,
    new_figure,
    percent_axis,
    ratio_axis,
    words,
)
from dinghai.view.palette import LIGHT

TOKENS_SHOWN = 12  # of the token ids that lost most
_LEAST_NOISE_SHOWN = 0.01  # half-width of the noise, as a share of the ratios shown
_BASE = 0.5  # where a logarithmic axis of counts begins: below the first token


def ratio_distribution(census: Census, rule: RuleFacts | None) -> Figure:
    """How many tokens of each region have which ratio, on a logarithmic axis, with the rule's bounds and the noise."""
    drawn = {region: counts for region, counts in census["ratio"]["regions"].items() if any(counts)}
    figure = new_figure(NARROW, 2.0 + (len(drawn) // 2 + 1) * LEGEND_ROW)
    axes = figure.subplots()
    edges = census["ratio"]["edges"]
    stopped = stopped_regions(census)
    handles: list[Any] = []
    for region, counts in drawn.items():
        line: dict[str, Any] = {"color": MAP_COLOURS[region], "linestyle": STYLES[2] if region == "no_signal" else "-"}
        axes.stairs(counts, edges, linewidth=0.9, baseline=_BASE, **line)
        if region in stopped:
            hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": line["color"], "hatch": HATCH}
            axes.stairs(counts, edges, fill=True, linewidth=0, baseline=_BASE, alpha=0.5, **hatched)
            handles.append(Patch(label=f"{words(region)} (stopped)", **hatched))
        else:
            handles.append(Line2D([], [], label=words(region), **line))
    axes.set_yscale("log")
    axes.set_ylim(bottom=_BASE)
    axes.set_ylabel("tokens")
    count_axis(axes.yaxis)
    ratio_axis(axes, edges[-1], ratio_of(rule), clear=0.3)
    for x in sorted({float(bound["log_ratio"]) for bound in bounds_of(rule, edges[-1])}):
        axes.axvline(x, color=LIGHT["ink"], linewidth=0.7, linestyle=STYLES[1])
        axes.annotate(
            f"{math.exp(x):.5g}", (x, 1), (2 if x > 0 else -2, -2), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="left" if x > 0 else "right", va="top", fontsize=6,
        )  # fmt: skip
    noise = census["ratio"]["noise"]
    if noise and noise["sampler_q95"] > _LEAST_NOISE_SHOWN * edges[-1]:
        band = axes.axvspan(-noise["sampler_q95"], noise["sampler_q95"], color=LIGHT["c1"], alpha=0.25, linewidth=0)
        band.set_label("noise: same weights (95%)")
        handles.append(band)
    legend_above(axes, handles, columns=2)
    return figure


def by_position(census: Census) -> Figure:
    """Over the place in the completion."""
    figure, lower = _two_panels(census, census["by_position"]["rows"])
    edges = census["by_position"]["edges"]
    labels = [f"{low:g}" if high - low <= 1 else f"{low:g}–{high - 1:g}" for low, high in itertools.pairwise(edges)]
    every = max(1, math.ceil(len(labels) / 9))
    lower.set_xticks(np.arange(0, len(labels), every), labels[::every])
    lower.set_xlabel("position in the completion")
    return figure


def by_interval(census: Census, name: str, label: str) -> Figure:
    """Over a table whose bins are intervals; their edges are named."""
    figure, lower = _two_panels(census, census[name]["rows"])
    edges = census[name]["edges"]
    lower.set_xticks(np.arange(len(edges)) - 0.5, [f"{edge:.6g}" for edge in edges], rotation=90)
    lower.set_xlabel(label)
    return figure


def _two_panels(census: Census, rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, Any]:
    """Bars for the rows of a table: share of tokens stopped, and below it of all removed gradient. Gives the lower."""
    figure = new_figure(NARROW, 2.7)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, (label, colour, shares) in zip((upper, lower), _measures(census, rows), strict=True):
        axes.bar(np.arange(len(rows)), shares, 0.85, color=colour)
        axes.set_ylim(*from_zero(shares))
        axes.set_ylabel(label, fontsize=7)
        axes.grid(axis="y")
        percent_axis(axes.yaxis)
    lower.set_xlim(-0.7, len(rows) - 0.3)
    return figure, lower


def _measures(census: Census, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Label, colour and a share for each row: of its tokens that are stopped, and of all removed gradient."""
    stopped = [_share(row["stopped"], row["signal"]) for row in rows]
    removed = [_share(row["removed"], census["removed"]) for row in rows]
    return [
        ("stopped, of\nthose with signal", LIGHT["c0"], stopped),
        ("share of gradient\nremoved", LIGHT["c1"], removed),
    ]


def by_token(census: Census, texts: Mapping[int, str]) -> Figure:
    """The token ids that lost most gradient: how much of their tokens is stopped, and their share of what was removed.

    Args:
        texts: of each id, which anybody may have written.
    """
    rows = [row for row in census["by_token"] if row["removed"] > 0][:TOKENS_SHOWN]
    figure = new_figure(NARROW, 0.75 + 0.16 * max(len(rows), 3))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (label, colour, shares) in zip(panels, _measures(census, rows), strict=True):
        axes.barh(np.arange(len(rows)), shares, 0.75, color=colour)
        axes.set_xlim(*from_zero(shares))
        axes.set_xlabel(label, fontsize=7)
        axes.grid(axis="x")
        axes.locator_params(axis="x", nbins=4)
        percent_axis(axes.xaxis)
    panels[0].set_yticks(np.arange(len(rows)), [drawable(texts[row["token"]].replace(" ", "␣")) or "∅" for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    panels[0].set_ylabel("token")
    return figure


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
