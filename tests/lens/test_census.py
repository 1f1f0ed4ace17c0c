"""A census adds up, counts every token exactly once wherever it counts, and says what it left out.

Run: pytest tests/lens/test_census.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinghai.errors import InputError, RunFailed
from dinghai.files import nonfinite_as_text
from dinghai.lens import census as module
from dinghai.lens.bins import PROBABILITY_EDGES, Bins
from dinghai.lens.census import Census, RunCensus, census
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.rewards import GroupRewards
from dinghai.lens.tokens import Tokens
from dinghai.trace import Samples, TraceReader, TraceWriter

BINS = Bins.of(0.5, 2.0, (0.0, 0.5, 1.0))
NAMES = {name: REGIONS.index(name) for name in REGIONS}
COMPLETIONS = 12
REWARDS = GroupRewards(1, np.arange(COMPLETIONS), np.linspace(0, 1, COMPLETIONS))
PEOPLE = ("tokens", "signal", "stopped", "outside")


def make_columns(seed: int, rows: int, hostile: bool) -> dict[str, np.ndarray]:
    """Tokens as a clip of 0.2 decides about them; with masked ones and, if hostile, NaN, infinities and far places.

    Two of the completions were never scored.
    """
    random = np.random.default_rng(seed)
    logp_old = -random.gamma(0.4, 2.0, rows)
    logp_new = np.minimum(logp_old + random.normal(0, 0.3, rows), 0)
    advantage = random.choice([0.0, 0.7, -1.3, 3.0], rows)
    ratio = np.exp(logp_new - logp_old)
    above, below, good = ratio > 1.2, ratio < 0.8, advantage > 0
    region = np.select(
        [advantage == 0, above & good, above, below & good, below],
        [NAMES[name] for name in ("no_signal", "overshoot", "relapse", "forgotten", "escaped")],
        NAMES["inside"],
    )
    region[random.random(rows) < 0.05] = NAMES["masked"]
    advantage[region == NAMES["masked"]] = 0
    stopped = (region == NAMES["overshoot"]) | (region == NAMES["escaped"])
    effect = np.where(stopped, EFFECTS.index("stopped"), EFFECTS.index("kept"))
    columns = {
        "sample": random.integers(0, COMPLETIONS, rows),
        "position": random.geometric(0.01, rows) - 1,
        "token": np.minimum(random.zipf(1.3, rows), 50_000),
        "logp_sampler": logp_old + random.choice([0.0, 1e-4, 0.3], rows),
        "logp_old": logp_old,
        "logp_new": logp_new,
        "advantage": advantage,
        "weight": np.where(stopped, 0, ratio * advantage),
        "region": region,
        "effect": np.where(advantage == 0, EFFECTS.index("none"), effect),
        "factor": random.choice([1.0, 1 / 7, 1 / 300], rows),
    }
    if hostile and rows:
        for name, values in (
            ("logp_new", [np.nan, np.inf, -np.inf]),
            ("logp_old", [np.nan, -np.inf, -500.0]),
            ("advantage", [np.nan, np.inf, -1e30]),
            ("weight", [np.nan, np.inf]),
            ("logp_sampler", [np.nan, -np.inf, 3e38]),
            ("position", [2**31 - 1, 10**6]),
        ):
            where = random.integers(0, rows, max(1, rows // 20))
            columns[name][where] = random.choice(values, len(where))
    unscored = columns["sample"] < 2
    columns["scored"] = ~unscored
    for name in ("logp_old", "logp_new"):
        columns[name][unscored] = np.nan
    for name in ("advantage", "weight"):
        columns[name][unscored] = 0
    columns["region"][unscored & (region != NAMES["masked"])] = NAMES["no_signal"]
    columns["effect"][unscored] = EFFECTS.index("none")
    kinds = {np.dtype(np.float64): np.float32}
    return {name: column.astype(kinds.get(column.dtype, column.dtype)) for name, column in columns.items()}


def counted(*parts: dict[str, np.ndarray], bins: Bins = BINS, rewards: GroupRewards = REWARDS) -> Census:
    found = Census(bins)
    for columns in parts:
        found.count(Tokens(columns), rewards)
    return found


def together(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(one: Any, other: Any) -> None:
    """Equal but for the last digits of sums."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=2e-5, abs=1e-12)
    else:
        assert one == other


DRAWN = st.tuples(st.integers(0, 10**6), st.integers(0, 400), st.booleans())  # arguments of make_columns


@settings(max_examples=40, deadline=None)
@given(st.lists(DRAWN, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_census_of_all_is_the_sum_of_the_censuses(drawn: list[tuple[int, int, bool]], random: Any) -> None:
    parts = [make_columns(*one) for one in drawn]
    whole = counted(together(*parts)).as_dict()
    assert_same(counted(*parts).as_dict(), whole)
    pieces = [counted(part) for part in parts]
    random.shuffle(pieces)
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    assert_same(total.as_dict(), whole)


@settings(max_examples=60, deadline=None)
@given(DRAWN)
def test_every_token_is_counted_once_in_each_table(drawn: tuple[int, int, bool]) -> None:
    columns = make_columns(*drawn)
    found = counted(columns).as_dict()
    rows, masked = len(columns["token"]), columns["region"] == NAMES["masked"]
    finite = found["tokens"] - found["not_finite"]
    placed = finite - found["unscored"]
    assert found["masked"] == np.count_nonzero(masked)
    assert found["unscored"] == np.count_nonzero(~columns["scored"] & ~masked)
    assert found["tokens"] + found["masked"] == rows
    cells = found["map"]["cells"]
    assert sum(cell[3] for cell in cells) == placed
    assert len({tuple(cell[:3]) for cell in cells}) == len(cells)
    assert sum(map(sum, found["ratio"]["regions"].values())) == placed
    for table in ("by_position", "by_probability", "by_reward"):
        table_rows = found[table]["rows"]
        assert len(table_rows) == len(found[table]["edges"]) - 1
        assert sum(row["tokens"] for row in table_rows) == (placed if table == "by_probability" else finite)
        for name in PEOPLE[1:]:
            assert sum(row[name] for row in table_rows) <= found[name]
            assert found["not_finite"] or sum(row[name] for row in table_rows) == found[name]
        for name in ("gradient", "removed"):
            assert math.fsum(row[name] for row in table_rows) == pytest.approx(found[name], rel=1e-4)
    assert sum(cell[4] for cell in cells) == sum(row["stopped"] for row in found["by_reward"]["rows"])
    assert math.fsum(cell[5] for cell in cells) == pytest.approx(found["removed"], rel=1e-4)
    json.dumps(found, allow_nan=False)  # nothing that is not finite comes through
    assert nonfinite_as_text(found) == found


@settings(max_examples=40, deadline=None)
@given(DRAWN)
def test_all_tokens_count_with_their_flags_even_where_they_are_not_finite(drawn: tuple[int, int, bool]) -> None:
    columns = make_columns(*drawn)
    found, tokens = counted(columns).as_dict(), Tokens(columns)
    takes_part = tokens.region != NAMES["masked"]
    assert found["tokens"] == takes_part.sum()
    for name in PEOPLE[1:]:
        assert found[name] == np.count_nonzero(getattr(tokens, name) & takes_part)
    finite = np.isfinite([tokens.advantage, tokens.gradient, tokens.removed]).all(axis=0)
    finite &= np.isfinite(tokens.log_ratio) | ~tokens.scored
    assert found["not_finite"] == np.count_nonzero(takes_part & ~finite)


def test_where_tokens_lie_against_a_slow_count() -> None:
    columns = make_columns(seed=5, rows=600, hostile=False)
    found, tokens = counted(columns).as_dict(), Tokens(columns)
    x_edges, y_edges = found["map"]["log_ratio_edges"], found["map"]["advantage_edges"]

    def place(x: float, edges: list[float]) -> int:
        return min(max(sum(x >= edge for edge in edges) - 1, 0), len(edges) - 2)

    cells: dict[tuple[int, int, int], list[float]] = {}
    by_probability = np.zeros((len(PROBABILITY_EDGES) - 1, 3))
    histogram = {name: [0] * 121 for name in REGIONS}
    for i in range(len(tokens)):
        if tokens.region[i] == NAMES["masked"] or not tokens.scored[i]:
            continue
        x, y = place(tokens.log_ratio[i], x_edges), place(tokens.advantage[i], y_edges)
        cell = cells.setdefault((x, y, int(tokens.region[i])), [0, 0, 0.0])
        cell[0] += 1
        cell[1] += int(tokens.stopped[i])
        cell[2] += float(tokens.removed[i])
        histogram[REGIONS[tokens.region[i]]][place(tokens.log_ratio[i], found["ratio"]["edges"])] += 1
        row = place(math.exp(tokens.logp_old[i]), list(PROBABILITY_EDGES))
        by_probability[row] += (1, tokens.gradient[i], tokens.removed[i])
    assert {tuple(cell[:3]): [*cell[3:5], pytest.approx(cell[5], rel=1e-4)] for cell in found["map"]["cells"]} == cells
    assert found["ratio"]["regions"] == {name: row for name, row in histogram.items() if any(row)}
    shown = [[row["tokens"], row["gradient"], row["removed"]] for row in found["by_probability"]["rows"]]
    np.testing.assert_allclose(shown, by_probability, rtol=1e-4)


def test_more_tokens_than_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = make_columns(seed=6, rows=1000, hostile=True)
    whole = counted(columns).as_dict()
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 7)
    assert_same(counted(columns).as_dict(), whole)


def one_token(**values: float) -> dict[str, np.ndarray]:
    usual = {"sample": 0, "position": 0, "token": 5, "logp_sampler": -1.0, "logp_old": -1.0, "logp_new": -1.0}
    usual |= {
        "advantage": 1.0,
        "weight": 1.0,
        "region": NAMES["inside"],
        "effect": EFFECTS.index("kept"),
        "factor": 1.0,
        "scored": True,
    }
    kinds = {int: np.int64, float: np.float32, bool: np.bool_}
    return {name: np.array([value], dtype=kinds[type(value)]) for name, value in (usual | values).items()}


def test_a_group_without_a_finite_reward_is_not_hidden() -> None:
    rewards = GroupRewards(1, np.array([0]), np.array([np.nan]))
    found = counted(one_token(), rewards=rewards).as_dict()
    assert (found["tokens"], found["not_finite"], found["map"]["cells"]) == (1, 1, [])


def test_the_tokens_that_lost_most_come_first() -> None:
    stopped = {"effect": EFFECTS.index("stopped"), "region": NAMES["overshoot"], "weight": 0.0}
    parts = [one_token(token=i, factor=1.0 / (1 + i), **stopped) for i in range(40)]
    parts += [one_token(token=100, factor=1.0, **stopped), one_token(token=7), one_token(token=200)]
    shown = counted(*parts).as_dict()["by_token"]
    assert [row["token"] for row in shown] == [0, 100, *range(1, 29)]
    both = {"token": 7, "tokens": 2, "signal": 2, "stopped": 1, "outside": 1}
    norm = 1 - math.exp(-1)
    sums = {"gradient": pytest.approx(norm * 9 / 8, rel=1e-5), "removed": pytest.approx(norm / 8, rel=1e-5)}
    assert shown[8] == both | sums


def test_the_noise_of_two_evaluations() -> None:
    """Quantiles to 6 %, from 0 through what a trace resolves to a whole nat."""
    apart = np.concatenate([np.zeros(100), np.geomspace(1e-5, 1.0, 900)])
    parts = together(*(one_token(logp_sampler=-3.0 + float(x), logp_old=-3.0) for x in apart))
    noise = counted(parts).as_dict()["ratio"]["noise"]
    assert noise["tokens"] == 1000
    assert noise["sampler_median"] == pytest.approx(np.quantile(apart, 0.5), rel=0.06)
    assert noise["sampler_q95"] == pytest.approx(np.quantile(apart, 0.95), rel=0.06)
    exact = counted(one_token()).as_dict()["ratio"]["noise"]
    assert exact == {"sampler_median": 0.0, "sampler_q95": 0.0, "tokens": 1}
    assert counted(one_token(logp_sampler=math.nan)).as_dict()["ratio"]["noise"] is None


@pytest.mark.parametrize("wrong", [{"token": -1}, {"token": 2**31 - 1}, {"position": -4}, {"sample": 99}])
def test_numbers_that_cannot_be_are_damage(wrong: dict[str, int]) -> None:
    with pytest.raises(RunFailed, match="step 1 is damaged"):
        counted(one_token(**wrong))


def test_other_bins_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="different bins"):
        Census(BINS) + Census(Bins.of(0.6, 2.0, (0.0, 1.0)))


# ------------------------------------------------------------------------------------------------------- from a trace


def write_trace(folder: Path, steps: int, rows: int = 60, updates: int = 2) -> TraceReader:
    """Groups of four completions with rewards 0, 0.5 and 1."""
    writer = TraceWriter(folder, 10**6, seed=0, regions=dict(enumerate(REGIONS)), effects=dict(enumerate(EFFECTS)))
    ids = list(range(COMPLETIONS))
    text = [f"p{i}" for i in ids]
    reward = [i // 4 / 2 for i in ids]
    for step in range(1, steps + 1):
        writer.begin_step(step, Samples(ids, [i // 4 for i in ids], text, text, text, [1] * 12, [True] * 12, reward))
        for update in range(updates):
            columns = make_columns(seed=100 * step + update, rows=rows, hostile=False)
            columns["entropy"] = np.zeros(rows, np.float32)
            writer.add_update(update, columns, columns["sample"])
        writer.finish_step()
    return TraceReader(folder)


def test_steps_and_updates_add_up(tmp_path: Path) -> None:
    reader = write_trace(tmp_path, steps=3)
    whole = census(reader, bins=BINS)
    assert (whole["steps"], whole["sampled"], whole["notes"]) == ([1, 3], None, [])
    assert whole["tokens"] + whole["masked"] == 3 * 2 * 60
    parts = [census(reader, [step], update, BINS) for step in (1, 2, 3) for update in (0, 1)]
    assert sum(part["tokens"] for part in parts) == whole["tokens"]
    assert math.fsum(part["removed"] for part in parts) == pytest.approx(whole["removed"], rel=1e-4)
    by_reward = [sum(part["by_reward"]["rows"][i]["tokens"] for part in parts) for i in (0, 1)]
    assert by_reward == [row["tokens"] for row in whole["by_reward"]["rows"]]
    assert by_reward[1] == pytest.approx(2 * by_reward[0], rel=0.3)  # 0.5 and 1 are in the upper bin
    of_one = [census(reader, None, update, BINS)["tokens"] for update in (0, 1)]
    assert sum(of_one) == whole["tokens"]


def test_a_run_with_too_many_tokens_is_sampled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_A_FILE_COSTS", 0)
    reader = write_trace(tmp_path, steps=9)

    def with_at_most(rows: int) -> dict[str, Any]:
        return RunCensus(reader, BINS, rows_at_most=rows).of(reader.steps())

    assert with_at_most(9 * 120)["sampled"] is None
    few = with_at_most(9 * 120 - 1)
    assert (few["sampled"], few["steps"]) == ("4 of 9 steps, evenly spaced", [1, 9])
    assert few["tokens"] + few["masked"] == 4 * 120
    assert_same(few["by_token"], census(reader, [2, 4, 6, 8], bins=BINS)["by_token"])
    assert_same(with_at_most(1)["by_token"], census(reader, [5], bins=BINS)["by_token"])
    for rows in range(120, 1200, 50):
        assert with_at_most(rows)["tokens"] <= rows


def test_opening_files_counts_towards_what_is_read(tmp_path: Path) -> None:
    reader = write_trace(tmp_path, steps=6)
    found = RunCensus(reader, BINS, rows_at_most=3 * (120 + 2 * module._ROWS_A_FILE_COSTS)).of(reader.steps())
    assert found["sampled"] == "3 of 6 steps, evenly spaced"


def test_a_growing_run_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = module._census_of_step
    monkeypatch.setattr(module, "_census_of_step", lambda *a: (read.append(a[1]), original(*a))[1])
    reader = write_trace(tmp_path, steps=6)
    growing = RunCensus(reader, BINS, rows_at_most=5 * (120 + 2 * module._ROWS_A_FILE_COSTS))
    for end, new in ((3, [1, 2, 3]), (3, []), (5, [4, 5]), (6, [2, 4, 6])):
        read.clear()
        found = growing.of(range(1, end + 1))
        assert read == new
    assert found["sampled"] == "3 of 6 steps, evenly spaced"
    assert_same(found["map"], census(reader, [2, 4, 6], bins=BINS)["map"])


def test_steps_that_a_resumed_run_made_anew_are_counted_anew(tmp_path: Path) -> None:
    reader = write_trace(tmp_path, steps=3)
    growing = RunCensus(reader, BINS)
    growing.of([1, 2, 3])
    write_trace(tmp_path, steps=3, rows=80)
    assert_same(growing.of([1, 2, 3]), census(TraceReader(tmp_path), bins=BINS))
    assert_same(growing.of([1, 2]), census(TraceReader(tmp_path), [1, 2], bins=BINS))


def test_a_damaged_step_is_left_out_and_named(tmp_path: Path) -> None:
    write_trace(tmp_path, steps=3)
    path = tmp_path / "step-000002" / "update-001.rank0.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    reader = TraceReader(tmp_path)
    found = census(reader)
    assert len(found["notes"]) == 1
    assert "update-001.rank0.parquet is damaged" in found["notes"][0]
    assert found["tokens"] + found["masked"] == 2 * 120, "no part of the damaged step is counted"
    with pytest.raises(RunFailed, match="damaged"):
        census(reader, [2])


def test_what_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no complete step"):
        census(TraceReader(tmp_path))
    reader = write_trace(tmp_path, steps=1)
    with pytest.raises(InputError, match="no step with an update 7"):
        census(reader, [1], update=7)
    with pytest.raises(InputError):
        census(reader, [99])


def test_a_step_of_nothing(tmp_path: Path) -> None:
    found = census(write_trace(tmp_path, steps=1, rows=0))
    assert (found["tokens"], found["map"]["cells"], found["by_position"]["rows"]) == (0, [], [])
    assert found["by_position"]["edges"] == [0]
