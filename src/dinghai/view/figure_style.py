"""How figures for a paper look, and how they become files: the palette's light colours, 8-point type, one look for all.

Needs matplotlib. Nothing of its global state is left changed: no pyplot, and settings only within `figure_settings`.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import matplotlib
import matplotlib.font_manager as fonts
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter, NullLocator

from dinghai.text import safe
from dinghai.view.palette import LIGHT

NARROW, WIDE = 3.3, 6.8  # inches: one and two columns of a paper
LEGEND_ROW = 0.15  # inches
DOTS_PER_INCH = 300
HATCH = "//////"  # of what the rule stopped
STYLES = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5))]  # of lines: the first series, the second, ...

# Beside matplotlib's own font, for what that lacks: the first that the system has.
_OTHER_FONTS = [
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
]
_FONT = "DejaVu Sans"
_CHARACTERS_AT_MOST = 60  # of a label that anybody may have written
_INCHES_AT_MOST = 1.2


@contextlib.contextmanager
def figure_settings() -> Iterator[None]:
    """Matplotlib's settings for our figures, for as long as it lasts."""
    ink, soft = LIGHT["ink"], LIGHT["soft"]
    settings = {
        "font.family": [*_families(), "sans-serif"],
        "font.size": 8,
        "axes.labelsize": 8,
        "axes.titlesize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "text.color": ink,
        "text.parse_math": False,  # a $ in a token is a dollar
        "axes.labelcolor": ink,
        "axes.edgecolor": soft,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": soft,
        "ytick.color": soft,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "grid.color": LIGHT["line"],
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.2,
        "hatch.linewidth": 0.7,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.2,
        "legend.borderaxespad": 0.2,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "dinghai",  # ids do not depend on the moment
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_svg(figure: Figure) -> bytes:
    """The same figure gives the same bytes: neither date nor version is in them."""
    _settle(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def as_png(figure: Figure) -> bytes:
    """As `as_svg`."""
    _settle(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out once, and round where its axes lie: the solver's last digits differ between processes."""
    if not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(x, 4) for x in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def drawable(text: str) -> str:
    """Text that anybody may have written, as a label: short, nothing in it acts, and a font here can draw all of it."""
    glyphs = _glyphs()
    shown = "".join(c if ord(c) in glyphs else f"\\u{{{ord(c):x}}}" for c in safe(text[:_CHARACTERS_AT_MOST]))
    shown = shown[:_CHARACTERS_AT_MOST]
    if len(text) > _CHARACTERS_AT_MOST or _inches(shown) > _INCHES_AT_MOST:
        while _inches(shown + "…") > _INCHES_AT_MOST:
            shown = shown[:-1]
        shown += "…"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves labels with one in front out of legends


def _inches(text: str) -> float:
    """Width at seven points."""
    font = fonts.get_font([fonts.findfont(fonts.FontProperties(family=[family])) for family in _families()])
    font.set_size(7, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 72


@cache
def _families() -> list[str]:
    installed = set(fonts.get_font_names())
    return [_FONT, *[name for name in _OTHER_FONTS if name in installed][:1]]


@cache
def _glyphs() -> frozenset[int]:
    """The characters that one of the fonts has."""
    found: set[int] = set()
    for family in _families():
        found.update(fonts.get_font(fonts.findfont(fonts.FontProperties(family=[family]))).get_charmap())
    return frozenset(found)


def legend_above(axes: Axes, handles: Sequence[Any], columns: int | None = None) -> None:
    """A legend over the axes, in rows that are filled from the left."""
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns or len(handles), borderpad=0.2
    )


def region_patch(region: str, stopped: bool, label: str | None = None) -> Patch:
    """The key of a region: its colour, hatched where the rule stopped its tokens."""
    return Patch(label=label or words(region), linewidth=0, **region_fill(region, stopped))


def region_fill(region: str, stopped: bool) -> dict[str, Any]:
    """How an area of a region is filled."""
    return {"facecolor": LIGHT[region], "edgecolor": "white", "hatch": HATCH if stopped else None}


def words(region: str) -> str:
    """no_signal -> no signal."""
    return region.replace("_", " ")


def percent_axis(axis: Any) -> None:
    """Ticks of a fraction as percentages, with as many digits as tell them apart."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def from_zero(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of bars: from 0 to a little above the largest, or to 1 % where there is nothing to see."""
    return 0.0, 1.06 * max(values, default=0.0) or 0.01


def count_axis(axis: Any) -> None:
    """Ticks of a logarithmic axis of counts as whole numbers, at powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axis.set_minor_formatter(NullFormatter())


def ratio_axis(axes: Axes, half_width: float, of: str, clear: float) -> None:
    """An x axis of log-ratios whose ticks are ratios; its ends are marked as holding everything beyond them.

    Args:
        of: whose ratio it is. clear: share of each half that the label at its end needs for itself.
    """
    axes.set_xlim(-half_width, half_width)
    ticks = {math.log(value): f"{value:.6g}" for value in ratio_ticks(half_width)}
    ticks = {x: text for x, text in ticks.items() if abs(x) < (1 - clear) * half_width}
    digits = max(2, 1 - math.floor(math.log10(half_width)))
    for x, sign in ((-half_width, "≤"), (half_width, "≥")):
        ticks[x] = f"{sign} {math.exp(x):.{digits}g}"
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"ratio r = π_new / π_old of the {of}")


_ROUND_RATIOS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0)


def ratio_ticks(half_width: float) -> list[float]:
    """Round ratios between exp(-half_width) and exp(half_width), 1 among them: some five to nine."""
    if half_width < 0.45:
        rough = half_width / 2.5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(nice * power for nice in (1, 2, 5, 10) if nice * power >= rough)
        values = [1 + k * step for k in range(-9, 10)]
    elif half_width < 1.4:
        values = list(_ROUND_RATIOS)
    elif half_width < 4.7:
        values = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5)]
    else:
        every = math.ceil(half_width / 12)
        values = [10.0**power for power in range(-12 * every, 13 * every, every)]
    return [float(f"{v:.12g}") for v in values if v > 0 and abs(math.log(v)) <= half_width]
