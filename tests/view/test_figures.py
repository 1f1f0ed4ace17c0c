"""Figures for papers: every one is written, is the same each time, and draws what anybody wrote as text."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib
import payloads
import pytest
from synthetic_run import make_run

from dinghai.cli import main
from dinghai.errors import InputError, RunFailed
from dinghai.files import json_line
from dinghai.lens.regions import REGIONS
from dinghai.lens.summary import load_run_metrics
from dinghai.objective import PolicyLoss
from dinghai.objective.probe import probe
from dinghai.view.figure_clip import by_interval, by_token, ratio_distribution
from dinghai.view.figure_curves import bars_by_update, curve, stacked_steps
from dinghai.view.figure_map import stopped_regions, token_map
from dinghai.view.figure_style import as_png, as_svg, drawable, figure_settings, ratio_ticks
from dinghai.view.figures import _figures, write_figures
from dinghai.view.palette import LIGHT

SVG = "{http://www.w3.org/2000/svg}"

EXPECTED = {
    "curve-completion-length", "curve-entropy", "curve-gradient-norm", "curve-held-out-accuracy", "curve-kl-old-new",
    "curve-lost-samples", "curve-reward", "curve-stopped-and-outside-the-band", "curve-time",
    "map", "ratios", "where-position", "where-probability", "where-reward", "where-token",
    "regions-every-token-by-region", "regions-gradient-removed-by-region",
    "updates-gradient-removed", "updates-kl-old-new", "updates-stopped-and-outside-the-band",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run with its figures, and what is known of its rule."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "addition-3", steps=3, prompts=4)
    (folder / "rule.json").write_text(json_line(probe(PolicyLoss("grpo"))))
    write_figures(folder)
    return folder


def texts_of(svg: bytes) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def drawn(figure: Any) -> list[str]:
    """The texts of a figure, after it has been drawn both ways without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_png(figure).startswith(b"\x89PNG")
        return texts_of(as_svg(figure))


# --- the files -------------------------------------------------------------------------------------------------------


def test_each_figure_of_the_report_is_there_as_vector_and_bitmap(run: Path) -> None:
    names = {path.name for path in (run / "figures").iterdir()}
    stems = {name.rpartition(".")[0] for name in names}
    assert stems >= EXPECTED
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("svg", "png")}


def test_bitmaps_are_of_a_papers_width_at_300_dots_an_inch(run: Path) -> None:
    for path in (run / "figures").glob("*.png"):
        content = path.read_bytes()
        width = struct.unpack(">I", content[16:20])[0]
        assert width in (990, 2040), path.name  # 3.3 and 6.8 inches
        per_metre = struct.unpack(">I", content[content.index(b"pHYs") + 4 :][:4])[0]
        assert per_metre == round(300 / 0.0254)


def test_vectors_have_text_as_text_and_nothing_too_small(run: Path) -> None:
    for path in (run / "figures").glob("*.svg"):
        assert any(re.search("[a-z]", text) for text in texts_of(path.read_bytes())), path.name
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", path.read_text("utf-8"))]
        assert sizes
        assert min(sizes) >= 6, path.name


def test_the_same_run_gives_the_same_bytes_in_another_process(run: Path, tmp_path: Path) -> None:
    """Another hash seed too. Nothing of matplotlib's global state is touched, and pyplot is not imported."""
    again = shutil.copytree(run, tmp_path / "again", ignore=shutil.ignore_patterns("figures"))
    code = (
        "import sys, matplotlib\n"
        "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "from dinghai.view.figures import write_figures\n"
        "write_figures(sys.argv[1])\n"
        "assert settings() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "TZ": "Asia/Shanghai"}
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(again)], check=True, env=environment, timeout=240)
    for path in sorted((run / "figures").iterdir()):
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes(), path.name


def test_no_date_and_no_version_is_in_them(run: Path) -> None:
    for path in (run / "figures").iterdir():
        content = path.read_bytes()
        for word in (b"<dc:date>", b"<dc:creator>", b"Matplotlib", b"tEXt", b"tIME", str(run).encode()):
            assert word not in content, (path.name, word)


def test_colours_are_those_of_the_palette(run: Path) -> None:
    svg = (run / "figures" / "regions-every-token-by-region.svg").read_text("utf-8")
    for region in ("inside", "overshoot", "escaped", "relapse", "forgotten"):
        assert LIGHT[region] in svg


def test_what_is_stopped_is_hatched(run: Path) -> None:
    svg = (run / "figures" / "regions-gradient-removed-by-region.svg").read_text("utf-8")
    assert svg.count("<pattern") >= 2  # overshoot and escaped
    assert "url(#h" in svg


def test_the_command_writes_them_and_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "reward/mean": 0.6}\n')
    assert main(["report", str(tmp_path), "--figures"]) == 0
    figures = tmp_path / "figures"
    written = [tmp_path / "report.html", figures / "curve-reward.svg", figures / "curve-reward.png"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written]


# --- what is missing -------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.view.figures.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'dinghai\[figures\]'"):
        write_figures(run)


def test_a_run_without_a_step_has_no_figure(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="no step to draw"):
        write_figures(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_a_damaged_trace_leaves_the_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, prompts=2, hostile=[])
    for file in (run / "trace").rglob("update-*.parquet"):
        file.write_bytes(b"x" * file.stat().st_size)
    names = {name for name, _ in _figures(run, load_run_metrics(run))}
    assert "curve-reward" in names
    assert "map" not in names


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(RunFailed, match="figures"):
        write_figures(tmp_path)


# --- curves ----------------------------------------------------------------------------------------------------------


def chart(*series: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"title": "Reward", "note": "of the step", "share": False, "series": list(series)} | others


def test_a_curve_says_its_unit_and_marks_what_is_not_finite() -> None:
    points = [[1, 0.5], [2, "NaN"], [3, 0.25], [4, "Infinity"], [5, 1.0]]
    with figure_settings():
        figure = curve(chart({"name": "KL", "points": points}, title="KL(old‖new)", note="nats a token, k3 estimate"))
        assert "(nats a token)" in drawn(figure)
    (axes,) = figure.axes
    lost = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in lost] == [[2, 4]]


def test_a_thinned_curve_shows_the_range_behind_its_means() -> None:
    points = [[1, 0.5, 0.1, 0.9], [3, 0.4, 0.2, 0.8], [5, "NaN"]]
    with figure_settings():
        figure = curve(chart({"name": "reward", "points": points, "every": 2}))
        drawn(figure)
    (band,) = figure.axes[0].collections
    assert band.get_datalim(figure.axes[0].transData).extents[3] == 0.9


def test_series_are_told_apart_by_more_than_colour() -> None:
    named = [{"name": name, "points": [[1, 0.5], [2, 0.6]]} for name in ("step", "rollout", "update")]
    with figure_settings():
        figure = curve(chart(*named))
        assert {"step", "rollout", "update"} <= set(drawn(figure))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 3


def test_regions_of_one_step_and_of_none_in_some_steps() -> None:
    with figure_settings():
        one = chart({"name": "escaped", "points": [[4, 0.1]]}, share=True, top=None)
        assert "escaped" in drawn(stacked_steps(one, {"escaped"}))
        gap = chart(
            {"name": "escaped", "points": [[1, 0.1], [2, "NaN"], [3, 0.2]]},
            {"name": "dual", "points": [[3, 0.2]]},
            share=True,
            top=1.0,
        )
        assert {"escaped", "dual"} <= set(drawn(stacked_steps(gap, set())))


def test_an_area_of_many_steps_is_drawn_by_means() -> None:
    points = [[step, 0.4 if step % 2 else 0.2] for step in range(1, 601)]
    with figure_settings():
        figure = stacked_steps(chart({"name": "escaped", "points": points}, share=True, top=None), set())
        drawn(figure)
    (area,) = figure.axes[0].collections
    heights = {round(float(y), 6) for _, y in area.get_paths()[0].vertices if y > 0}
    assert len(area.get_paths()[0].vertices) < 300
    assert heights <= {0.28, 0.32}  # of five neighbours, two or three are the high ones


def test_a_curve_of_nothing_does_not_go_below_it() -> None:
    with figure_settings():
        for share, top in ((True, 0.01), (False, 1)):
            figure = curve(chart({"name": "cut", "points": [[1, 0.0], [2, 0.0], [3, "NaN"]]}, share=share))
            assert figure.axes[0].get_ylim() == (0, top)


def test_bars_of_updates_without_a_value() -> None:
    series = [{"name": "stopped", "values": [0.0, None, "NaN"]}, {"name": "outside", "values": [0.1, 0.2, 0.3]}]
    with figure_settings():
        for stacked in (False, True):
            named = [one | {"name": name} for one, name in zip(series, ("escaped", "dual"), strict=True)]
            bars = chart(*(named if stacked else series), labels=["a", "b", "c"], stacked=stacked)
            assert "update of the batch" in drawn(bars_by_update(bars, set()))


# --- the map and the ratios ------------------------------------------------------------------------------------------


def census(half_width: float = 0.5, **others: Any) -> dict[str, Any]:
    """Ten tokens: one in each corner that a clip stops, the rest inside."""
    inside, overshoot, escaped = (REGIONS.index(name) for name in ("inside", "overshoot", "escaped"))
    cells = [
        [2, 3, inside, 6, 0, 0.0],
        [2, 1, inside, 2, 0, 0.0],
        [4, 4, overshoot, 1, 1, 3.0],
        [0, 0, escaped, 1, 1, 1.0],
    ]
    edges = [half_width * (i - 2.5) / 2.5 for i in range(6)]
    regions = {"inside": [0, 0, 8, 0, 0], "overshoot": [0, 0, 0, 0, 1], "escaped": [1, 0, 0, 0, 0]}
    row = {"tokens": 10, "signal": 10, "stopped": 2, "outside": 2, "gradient": 20.0, "removed": 4.0}
    return {
        **row,
        "map": {"log_ratio_edges": edges, "advantage_edges": [i - 2.5 for i in range(6)], "cells": cells},
        "ratio": {"edges": edges, "regions": regions, "noise": None},
        "by_reward": {"edges": [0, 0.5, 1], "rows": [row, row]},
        "by_token": [{"token": 7, **row}],
    } | others


def test_the_map_names_the_places_with_their_shares() -> None:
    with figure_settings():
        said = drawn(token_map(census(), probe(PolicyLoss("grpo"))))
    assert {"overshoot", "escaped", "forgotten", "relapse"} <= set(said)
    assert {"10% of tokens", "100% stopped", "75% of what is removed", "25% of what is removed"} <= set(said)
    assert {"60% of tokens", "20% of tokens"} <= set(said)  # inside, by the sign of A
    assert {"0.8", "1.2", "A > 0", "A < 0", "advantage A"} <= set(said)


@pytest.mark.parametrize("rule", [None, "dcpo", "bapo", "sapo"])
def test_a_rule_whose_bounds_vary_or_are_not_there_has_none_drawn(rule: str | None) -> None:
    with figure_settings():
        said = drawn(token_map(census(), probe(PolicyLoss(rule)) if rule else None))
        drawn(ratio_distribution(census(), probe(PolicyLoss(rule)) if rule else None))
    assert "overshoot" in said  # in the legend
    assert not any("of tokens" in text for text in said)


@pytest.mark.parametrize(("rule", "half_width", "of"), [("gspo", 0.002, "completion"), ("cispo", 8.0, "token")])
def test_maps_of_narrow_and_wide_ratios(rule: str, half_width: float, of: str) -> None:
    with figure_settings():
        facts = probe(PolicyLoss(rule))
        for figure in (token_map(census(half_width), facts), ratio_distribution(census(half_width), facts)):
            said = drawn(figure)
            assert f"ratio r = π_new / π_old of the {of}" in said
            assert any(text.startswith("≤") for text in said)
            assert any(text.startswith("≥") for text in said)


def test_the_noise_is_drawn_where_it_can_be_seen() -> None:
    label = "noise: same weights (95%)"
    for q95, seen in ((0.05, True), (1e-6, False)):
        noise = {"sampler_median": q95 / 3, "sampler_q95": q95, "tokens": 10}
        counted = census()
        counted["ratio"]["noise"] = noise
        with figure_settings():
            assert (label in drawn(ratio_distribution(counted, None))) == seen


def test_regions_count_as_stopped_where_most_of_their_tokens_are() -> None:
    assert stopped_regions(census()) == {"overshoot", "escaped"}


def test_an_empty_census_is_drawn() -> None:
    empty = census()
    empty["map"]["cells"] = []
    empty["ratio"]["regions"] = {}
    nothing = dict.fromkeys(("tokens", "signal", "stopped", "outside", "gradient", "removed"), 0)
    empty |= nothing | {"by_reward": {"edges": [0, 1], "rows": [nothing]}}
    with figure_settings():
        drawn(token_map(empty, None))
        drawn(ratio_distribution(empty, None))
        drawn(by_interval(empty, "by_reward", "mean reward"))


@pytest.mark.parametrize("half_width", [1e-4, 0.002, 0.03, 0.2, 0.44, 0.46, 1.2, 1.39, 1.41, 3.0, 4.6, 4.8, 12.0, 20.0])
def test_ticks_of_ratios_are_round_and_neither_few_nor_many(half_width: float) -> None:
    ticks = ratio_ticks(half_width)
    assert 1.0 in ticks
    assert 3 <= len(ticks) <= 15
    assert all(abs(math.log(tick)) <= half_width for tick in ticks)


# --- what anybody wrote ----------------------------------------------------------------------------------------------

HOSTILE = [
    r"$\frac", "$$", "$x^2$", r"\usepackage", "a\nb", "\u202eevil", "\x00", "\x1b[31m",
    "</text><script>alert(1)</script>", "_hidden", "中文", "\U0001f600", "\ud800", "\u202e\u0627\u202c",
    "e\u0301\u0301\u0301", "%s {0}", "&amp;", "]]>", " the", "x" * 5000, "",
]  # fmt: skip


def test_hostile_tokens_are_drawn_as_they_are_shown_elsewhere() -> None:
    rows = [{**census()["by_token"][0], "token": number} for number in range(len(HOSTILE))]
    said = []
    with figure_settings():
        for start in range(0, len(HOSTILE), 6):
            part = census(by_token=rows[start : start + 6])
            said += drawn(by_token(part, dict(enumerate(HOSTILE))))
    assert {r"$\frac", "$$", "$x^2$", "a⏎b", r"\u202eevil", r"\x00", " _hidden", "␣the", "&amp;"} <= set(said)
    assert any(text.startswith("</text><script>") for text in said)


def test_payloads_are_drawn_as_tokens_and_as_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sixth, by turns, since drawing takes a while; what becomes of each is seen in the next test."""
    some = payloads.ALL[::6]
    monkeypatch.setattr("dinghai.view.figure_clip.TOKENS_SHOWN", len(some))
    rows = [{**census()["by_token"][0], "token": number} for number in range(len(some))]
    named = [{"name": text, "points": [[1, 0.5], [2, 0.6]]} for text in some]
    with figure_settings(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (by_token(census(by_token=rows), dict(enumerate(some))), curve(chart(*named))):
            svg = ET.fromstring(as_svg(figure))
            assert len(svg.findall(f".//{SVG}text")) >= len(some)
            assert not svg.findall(f".//{SVG}script")


@pytest.mark.parametrize("text", [*HOSTILE, *payloads.ALL])
def test_labels_are_short_and_drawable(text: str) -> None:
    shown = drawable(text)
    assert len(shown) <= 61
    assert shown.isprintable()


@pytest.mark.parametrize("text", [r"$\frac", "$$", "%s {0}", "&amp;", " the", "é", "", "x" * 16])
def test_labels_that_fit_stay_as_they_are(text: str) -> None:
    assert drawable(text) == text


def test_labels_that_do_not_fit_are_cut_by_their_width() -> None:
    assert drawable("i" * 40).startswith("i" * 25)
    assert drawable("W" * 40).endswith("W…")
    assert len(drawable("W" * 40)) < 15


def test_characters_without_a_glyph_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.view.figure_style._glyphs", lambda: frozenset(map(ord, "ab\\u{}0123456789cdef")))
    assert drawable("a中b") == r"a\u{4e2d}b"


def test_dollars_are_not_formulas_only_while_our_settings_hold() -> None:
    before = matplotlib.rcParams["text.parse_math"]
    with figure_settings():
        assert matplotlib.rcParams["text.parse_math"] is False
    assert matplotlib.rcParams["text.parse_math"] == before


def test_a_reward_with_a_hostile_name_becomes_a_label(tmp_path: Path) -> None:
    rows = [{"step": s, "reward/mean": 0.5, r"reward/$\frac/mean": 0.1, "reward/_b</text>/mean": 0.2} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path,) = (path for path in write_figures(tmp_path) if path.name == "curve-reward.svg")
    assert {r"$\frac", " _b</text>"} <= set(texts_of(path.read_bytes()))
