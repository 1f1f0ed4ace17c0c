"""The figure of a sweep as plain data: panels of settings along an axis, every seed a point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from dinghai.sweep.axes import Axis
from dinghai.sweep.plan import Plan
from dinghai.sweep.table import Row

_MOST_SERIES = 6  # colours that are told apart
_MOST_PANELS = 12
_LOG_FROM = 8.0  # largest over smallest value of a list from which on its axis is logarithmic


def chart(plan: Plan, rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """What `dinghai.view.figure_sweep` draws.

    {"metric", "panels": [{"title", "x": {"label", "log", "ticks": [{"x", "text"}] | null}, "series": [{"name",
    "points": [{"x", "values", "mean", "low", "high", "failed"}]}]}]}; `ticks` where x counts categories. A grid over
    up to two settings is one panel; each further one makes more of them. Of a search every setting has its own panel.
    """
    if not plan.axes:
        return {"metric": metric, "panels": [_panel("", Axis("", ("",)), "all settings alike", {"": list(rows)}, plan)]}
    shorts = plan.short_keys()
    in_grid = plan.search == "grid" and len(rows) == math.prod(len(axis.values) for axis in plan.axes)
    # The longest list of numbers is the x axis; the next that has few enough values gets the colours.
    order = sorted(plan.axes, key=lambda axis: (_numbers(axis) is None, -len(axis.values)))
    x, rest = order[0], order[1:]
    coloured = next((axis for axis in rest if len(axis.values) <= _MOST_SERIES), None)
    outer = [axis for axis in rest if axis is not coloured]
    if not in_grid or math.prod(len(axis.values) for axis in outer) > _MOST_PANELS:
        panels = [_panel("", axis, shorts[axis.key], {"": list(rows)}, plan) for axis in plan.axes]
        return {"metric": metric, "panels": panels}
    panels = []
    for combination in itertools.product(*(axis.values for axis in outer)):
        fixed = dict(zip([axis.key for axis in outer], combination, strict=True))
        inside = [row for row in rows if fixed.items() <= plan.settings[row.setting].items()]
        series = {"": inside}
        if coloured is not None:
            series = {
                f"{shorts[coloured.key]} {value}": [
                    r for r in inside if plan.settings[r.setting][coloured.key] == value
                ]
                for value in coloured.values
            }
        title = ", ".join(f"{shorts[key]} {value}" for key, value in fixed.items())
        panels.append(_panel(title, x, shorts[x.key], series, plan))
    return {"metric": metric, "panels": panels}


def _panel(title: str, axis: Axis, label: str, series: dict[str, list[Row]], plan: Plan) -> dict[str, Any]:
    texts = list(axis.values) or sorted({values[axis.key] for values in plan.settings})
    numbers = _numbers(axis)
    if axis.is_range and not all(map(_is_number, texts)):
        numbers = None  # the base has none there
    places = {text: float(text) if numbers is not None else float(n) for n, text in enumerate(texts)}
    log = axis.log
    if numbers:
        log = min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_FROM
    if log and min(places.values(), default=1.0) <= 0:
        log = False  # the base lies outside the range
    return {
        "title": title,
        "x": {
            "label": label,
            "log": log and numbers is not None,
            "ticks": [{"x": x, "text": text} for text, x in places.items()] if numbers is None else None,
        },
        "series": [
            {
                "name": name,
                "points": sorted(
                    (_point(places[plan.settings[row.setting].get(axis.key, "")], row) for row in rows),
                    key=lambda point: float(point["x"]),
                ),
            }
            for name, rows in series.items()
        ],
    }


def _point(x: float, row: Row) -> dict[str, Any]:
    end = row.end
    has_interval = end is not None and end.n > 1
    return {
        "x": x,
        "values": [value for _, value in sorted(row.values.items())],
        "mean": end.mean if end else None,
        "low": end.low if end and has_interval else None,
        "high": end.high if end and has_interval else None,
        "failed": row.failed + row.without_value,
    }


def _numbers(axis: Axis) -> list[float] | None:
    """The values of an axis as numbers; none of them for a range; None where they are words."""
    return [float(value) for value in axis.values] if all(map(_is_number, axis.values)) else None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
