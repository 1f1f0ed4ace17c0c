"""The map: tokens by ratio and advantage, with the places that the rule treats differently. Needs matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dinghai.lens.regions import REGIONS
from dinghai.view.figure_style import (
    HATCH,
    STYLES,
    WIDE,
    count_axis,
    legend_above,
    new_figure,
    ratio_axis,
    region_patch,
    words,
)
from dinghai.view.palette import LIGHT

Census = Mapping[str, Any]
RuleFacts = Mapping[str, Any]

# Inside and no_signal are pale elsewhere, to be a ground for the others; here their density is to be seen.
MAP_COLOURS = {**LIGHT, "inside": LIGHT["soft"], "no_signal": LIGHT["soft"]}

_FAINTEST = 0.25  # opacity of a cell with one token
_SHADES = 24  # of the key
_LABEL_AT_LEAST = 0.055  # share of the width that a place needs for its label


class Place(NamedTuple):
    """Where the rule sees a region: an interval of log-ratios, above or below A = 0."""

    sign: int
    low: float
    high: float
    region: str


class Sums(NamedTuple):
    """Of a region."""

    tokens: int
    stopped: int
    removed: float


def stopped_regions(census: Census) -> set[str]:
    """The regions in which the rule stops tokens: most of those there."""
    counts = {region: region_sums(census, region) for region in REGIONS}
    return {region for region, sums in counts.items() if sums.stopped > sums.tokens / 2}


def region_sums(census: Census, region: str, sign: int = 0) -> Sums:
    """From the map's cells; of those with A of a sign, where that is not 0."""
    middle = (len(census["map"]["advantage_edges"]) - 1) // 2
    cells = [
        cell
        for cell in census["map"]["cells"]
        if cell[2] == REGIONS.index(region) and (sign == 0 or (cell[1] - middle) * sign > 0)
    ]
    return Sums(sum(c[3] for c in cells), sum(c[4] for c in cells), math.fsum(c[5] for c in cells))


def bounds_of(rule: RuleFacts | None, half_width: float, sign: int | None = None) -> list[Mapping[str, Any]]:
    """The rule's bounds within the log-ratios that are shown, ascending; those for A of a sign, or all."""
    found = [
        bound
        for bound in (rule or {}).get("boundaries", ())
        if abs(float(bound["log_ratio"])) < half_width and sign in (None, bound["advantage"])
    ]
    return sorted(found, key=lambda bound: float(bound["log_ratio"]))


def ratio_of(rule: RuleFacts | None) -> str:
    """Whose ratio the rule sees."""
    return "completion" if str((rule or {}).get("ratio")).startswith("sequence") else "token"


def token_map(census: Census, rule: RuleFacts | None) -> Figure:
    """Tokens by ratio and advantage, with the regions' bounds; above it the rule's weight at each ratio."""
    weights = (rule or {}).get("weights")
    figure = new_figure(WIDE, 3.9 if weights else 3.2)
    upper, axes = None, None
    if weights:
        upper, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.4])
    else:
        axes = figure.subplots()
    edges_x, edges_y = census["map"]["log_ratio_edges"], census["map"]["advantage_edges"]
    most = _draw_cells(axes, census, edges_x, edges_y)
    axes.set_ylim(edges_y[0], edges_y[-1])
    axes.set_ylabel("advantage A")
    axes.axhline(0, color=LIGHT["soft"], linewidth=0.5)
    ratio_axis(axes, edges_x[-1], ratio_of(rule), clear=0.14)
    places = _places(rule, edges_x[-1])
    top = axes if upper is None else upper
    if places:
        for place in places:
            _draw_place(axes, place, census, _is_stopped(rule, place), edges_x[-1], edges_y[-1])
        _name_bounds(top, rule, edges_x[-1])
    else:
        stopped = stopped_regions(census)
        found = [region for region in REGIONS if region_sums(census, region).tokens]
        legend_above(top, [region_patch(region, region in stopped) for region in found], columns=6)
    _name_strip(axes, census)
    if upper is not None and weights:
        _draw_weights(upper, weights, edges_x[-1])
    if most > 1:
        _density_key(figure, axes, most)
    return figure


def _draw_cells(axes: Axes, census: Census, edges_x: Sequence[float], edges_y: Sequence[float]) -> int:
    """Each cell in the colour of the region with most of its tokens, the fuller the stronger. Gives the most tokens."""
    cells: dict[tuple[int, int], dict[int, int]] = {}
    for x, y, region, tokens, *_ in census["map"]["cells"]:
        found = cells.setdefault((x, y), {})
        found[region] = found.get(region, 0) + tokens
    most = max((sum(found.values()) for found in cells.values()), default=0)
    corners, colours = [], []
    for (x, y), found in sorted(cells.items()):
        left, right, low, high = edges_x[x], edges_x[x + 1], edges_y[y], edges_y[y + 1]
        corners.append([(left, low), (right, low), (right, high), (left, high)])
        region = REGIONS[max(found, key=lambda one: (found[one], -one))]
        colours.append(_shade(MAP_COLOURS[region], sum(found.values()), most))
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors=colours, linewidths=0.2))
    return most


def _shade(colour: str, tokens: float, most: float) -> tuple[float, ...]:
    """The colour over white, by the logarithm of the count."""
    share = math.log(tokens) / math.log(most) if most > 1 else 1.0
    opacity = _FAINTEST + (1 - _FAINTEST) * share
    return tuple(opacity * part + 1 - opacity for part in to_rgb(colour))


def _density_key(figure: Figure, axes: Axes, most: int) -> None:
    shades = ListedColormap([_shade(LIGHT["soft"], most ** (i / (_SHADES - 1)), most) for i in range(_SHADES)])
    bar = figure.colorbar(ScalarMappable(LogNorm(1, most), shades), ax=axes, pad=0.01, fraction=0.03, aspect=30)
    bar.set_label("tokens in a cell", fontsize=7)
    count_axis(bar.ax.yaxis)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


# --- what is drawn into it -------------------------------------------------------------------------------------------


def _places(rule: RuleFacts | None, half_width: float) -> list[Place]:
    """None where the bounds vary or are not known."""
    places: list[Place] = []
    for sign in (1, -1):
        bounds = bounds_of(rule, half_width, sign)
        if not bounds:
            continue
        edges = [-half_width, *(float(bound["log_ratio"]) for bound in bounds), half_width]
        names = [bounds[0]["below"], *(bound["above"] for bound in bounds)]
        intervals = zip(itertools.pairwise(edges), names, strict=True)
        places += [Place(sign, low, high, name) for (low, high), name in intervals]
    return places


def _draw_place(axes: Axes, place: Place, census: Census, stopped: bool, half_width: float, top: float) -> None:
    """Its bounds, hatching where the weight is 0, and its name with its shares."""
    sign, low, high, region = place
    if stopped:
        hatching: dict[str, Any] = {
            "fill": False,
            "hatch": HATCH,
            "edgecolor": LIGHT[region],
            "alpha": 0.35,
            "linewidth": 0,
        }
        axes.add_patch(Rectangle((low, 0), high - low, sign * top, **hatching))
    for edge in (low, high):
        if abs(edge) < half_width:
            axes.plot([edge, edge], [0, sign * top], color=LIGHT["ink"], linewidth=0.7)
    if high - low < 2 * half_width * _LABEL_AT_LEAST:
        return
    one_sided = region in ("inside", "dropped", "no_signal")  # the others lie on one side of A = 0 by their meaning
    sums = region_sums(census, region, sign if one_sided else 0)
    lines = [words(region), f"{_percent(sums.tokens, census['tokens'])} of tokens"]
    if sums.stopped:
        lines.append(f"{_percent(sums.stopped, sums.tokens)} stopped")
    if sums.removed > 0:
        lines.append(f"{_percent(sums.removed, census['removed'])} of what is removed")
    axes.annotate(
        "\n".join(lines), ((low + high) / 2, sign * top), (0, -3 * sign), textcoords="offset points", ha="center",
        va="top" if sign > 0 else "bottom", fontsize=6, linespacing=1.15,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
    )  # fmt: skip


def _name_strip(axes: Axes, census: Census) -> None:
    """The tokens without a signal lie on A = 0."""
    tokens = region_sums(census, "no_signal").tokens
    if tokens:
        axes.annotate(
            f"A = 0, no signal: {_percent(tokens, census['tokens'])} of tokens", (1, 0), (-2, 4),
            xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right", va="bottom", fontsize=6,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )  # fmt: skip


def _name_bounds(axes: Axes, rule: RuleFacts | None, half_width: float) -> None:
    """Their ratios, over the axes."""
    for x in sorted({float(bound["log_ratio"]) for bound in bounds_of(rule, half_width)}):
        axes.annotate(
            f"{math.exp(x):.5g}", (x, 1), (0, 2), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
            ha="center", va="bottom", fontsize=6, color=LIGHT["soft"], annotation_clip=False,
        )  # fmt: skip


def _is_stopped(rule: RuleFacts | None, place: Place) -> bool:
    """Whether the rule's weight is 0 throughout."""
    weights = (rule or {}).get("weights")
    if not weights:
        return False
    curve = zip(weights["log_ratio"], weights["good" if place.sign > 0 else "bad"], strict=True)
    between = [float(weight) for x, weight in curve if place.low < float(x) < place.high]
    return bool(between) and all(weight == 0 for weight in between)


def _draw_weights(axes: Axes, weights: Mapping[str, Any], half_width: float) -> None:
    x = np.array([float(value) for value in weights["log_ratio"]])
    for number, (name, label) in enumerate((("good", "A > 0"), ("bad", "A < 0"))):
        y = np.array([float(value) for value in weights[name]])
        y[~np.isfinite(y)] = np.nan
        shown = np.abs(x) <= half_width
        axes.plot(x[shown], y[shown], color=LIGHT[f"c{number}"], linestyle=STYLES[number], label=label)
    axes.axhline(0, color=LIGHT["soft"], linewidth=0.5)
    axes.set_ylabel("weight\nw / |A|")
    axes.margins(y=0.1)
    axes.tick_params(labelbottom=False)
    regions = axes.get_legend()
    axes.legend(loc="best", ncols=1)
    if regions is not None:
        axes.add_artist(regions)  # a second legend takes the first one's place


def _percent(part: float, whole: float) -> str:
    share = part / whole if whole else 0.0
    return f"{100 * share:.2g}%" if share < 0.0995 else f"{share:.0%}"
