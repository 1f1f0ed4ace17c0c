"""Writes a run's figures as files for a paper: `figures/*.svg` and `*.png` in the run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dinghai.errors import DinghaiError, InputError
from dinghai.lens.bins import bins_for
from dinghai.lens.census import census
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.rule_facts import readable_rule_facts
from dinghai.lens.summary import load_run_metrics
from dinghai.trace import TraceReader
from dinghai.trace.files import changing_disk, write_atomically
from dinghai.view.report_charts import curves, region_charts, update_charts
from dinghai.view.token_text import load_token_text, tokenizer_file, visible

FOLDER = "figures"


def write_figures(run_folder: Path) -> list[Path]:
    """Write each figure of the report as a vector and as a bitmap of 300 dots an inch, and return the files.

    The same run gives the same bytes. Titles are left to the paper's captions.

    Raises:
        InputError: matplotlib is not installed; or the run has no step to draw.
        RunFailed: a file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib, which is not installed: pip install 'dinghai[figures]'")
    from dinghai.view.figure_style import as_png, as_svg, figure_settings

    run_folder = Path(run_folder)
    metrics = load_run_metrics(run_folder)
    folder = run_folder / FOLDER
    written: list[Path] = []
    with figure_settings():
        for name, figure in _figures(run_folder, metrics):
            changing_disk(folder, lambda: folder.mkdir(exist_ok=True), then="run the command again")
            for path, content in ((folder / f"{name}.svg", as_svg(figure)), (folder / f"{name}.png", as_png(figure))):
                write_atomically(path, content, then="run the command again")
                written.append(path)
    if not written:
        raise InputError(f"{run_folder} has no step to draw: neither metrics nor trace")
    return written


def _figures(run_folder: Path, metrics: Metrics) -> Iterator[tuple[str, Any]]:
    """File name and figure, in the report's order."""
    from dinghai.view.figure_curves import bars_by_update, curve, stacked_steps
    from dinghai.view.figure_map import stopped_regions

    counted, rule = _counted(run_folder)
    stopped = stopped_regions(counted) if counted else set()
    taken: set[str] = set()
    for chart in curves(metrics):
        yield _name("curve", chart, taken), curve(chart)
    for chart in region_charts(metrics):
        yield _name("regions", chart, taken), stacked_steps(chart, stopped)
    for chart in update_charts(metrics):
        yield _name("updates", chart, taken), bars_by_update(chart, stopped)
    if counted:
        yield from _clip_figures(run_folder, counted, rule)


def _clip_figures(run_folder: Path, counted: dict[str, Any], rule: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    from dinghai.view.figure_clip import by_interval, by_position, by_token, ratio_distribution
    from dinghai.view.figure_map import token_map

    yield "map", token_map(counted, rule)
    yield "ratios", ratio_distribution(counted, rule)
    if not (counted["stopped"] or counted["removed"] > 0):
        return  # the rule acted nowhere
    if counted["by_position"]["rows"]:
        yield "where-position", by_position(counted)
    if counted["by_probability"]["rows"]:
        yield "where-probability", by_interval(counted, "by_probability", "π_old of the token")
    if counted["by_reward"]["rows"]:
        yield "where-reward", by_interval(counted, "by_reward", "mean reward of the group")
    if any(row["removed"] > 0 for row in counted["by_token"]):
        known = load_token_text(tokenizer_file(run_folder))
        text = visible(known) if known else "⟨{}⟩".format
        yield "where-token", by_token(counted, {row["token"]: text(row["token"]) for row in counted["by_token"]})


def _counted(run_folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The census of the whole run, where it has a trace, and what is known of its rule."""
    rule = readable_rule_facts(run_folder)
    reader = TraceReader(run_folder / "trace")
    try:
        if not reader.steps():
            return None, rule
        return census(reader, bins=bins_for(reader, rule)), rule
    except DinghaiError:
        return None, rule


def _name(kind: str, chart: dict[str, Any], taken: set[str]) -> str:
    """curve-held-out-accuracy; a second chart of the same title gets a number."""
    title = re.sub(r"[^a-z0-9]+", "-", chart["title"].removesuffix(", by update").lower()).strip("-")
    names = (f"{kind}-{title}{f'-{number}' if number > 1 else ''}" for number in range(1, 100))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name
