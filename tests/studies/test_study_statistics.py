"""Proves what the studies reckon with: t-intervals, paired differences, the sign test, and the verdicts made of them.

Run: pytest tests/studies/test_study_statistics.py
"""

from __future__ import annotations

import math
import random

import pytest
from common.base import merged
from common.page import (
    CAME_OUT,
    NOT_TOLD_APART,
    REVERSED,
    Format,
    judge,
    percent,
    points,
    significant,
    together,
    with_interval,
)
from common.statistics import Interval, interval, paired, sign_test, t_quantile, t_within
from hypothesis import given
from hypothesis import strategies as st

finite = st.floats(-1e3, 1e3, allow_nan=False)


@pytest.mark.parametrize(
    "degrees, confidence, expected",
    [
        (1, 0.95, 12.7062047362),
        (2, 0.95, 4.3026527297),
        (3, 0.95, 3.1824463053),
        (4, 0.95, 2.7764451052),
        (9, 0.95, 2.2621571628),
        (30, 0.95, 2.0422724563),
        (120, 0.95, 1.9799304051),
        (4, 0.99, 4.6040948713),
        (5, 0.90, 2.0150483733),
    ],
)
def test_quantiles_are_those_of_printed_tables(degrees: int, confidence: float, expected: float) -> None:
    """Student's t, two-sided."""
    assert t_quantile(degrees, confidence) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 60), st.floats(0.01, 50))
def test_probability_is_the_integral_of_the_density(degrees: int, t: float) -> None:
    """The closed sum against Simpson's rule on the density, over θ = arctan(t/√ν), where it is cos^(ν-1)."""
    end, parts = math.atan(t / math.sqrt(degrees)), 400
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    total = math.fsum(
        (1 if i in (0, parts) else 4 if i % 2 else 2) * math.cos(i * end / parts) ** (degrees - 1)
        for i in range(parts + 1)
    )
    assert t_within(t, degrees) == pytest.approx(2 * scale * total * end / parts / 3, abs=1e-7)


@given(st.lists(finite, min_size=2, max_size=12), st.floats(0.1, 10), finite)
def test_an_interval_moves_with_its_values(values: list[float], scale: float, shift: float) -> None:
    """Shifted and scaled values have the shifted and scaled interval, and their order does not matter."""
    found = interval(values)
    moved = interval([scale * value + shift for value in reversed(values)])
    for one, other in ((found.mean, moved.mean), (found.low, moved.low), (found.high, moved.high)):
        assert other == pytest.approx(scale * one + shift, rel=1e-9, abs=1e-6)
    assert found.low <= found.mean <= found.high


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Of 2000 samples of five normal numbers 95 % of the intervals hold 0, within four standard errors."""
    generator = random.Random(0)
    samples = [[generator.gauss(0, 3) for _ in range(5)] for _ in range(2000)]
    held = sum(found.low <= 0 <= found.high for found in map(interval, samples)) / len(samples)
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(samples))


@given(st.dictionaries(st.integers(0, 9), finite, min_size=1), st.dictionaries(st.integers(0, 9), finite, min_size=1))
def test_differences_are_paired_by_seed(one: dict[int, float], other: dict[int, float]) -> None:
    """Only seeds that both have count; what is common to a seed cancels."""
    common = sorted(one.keys() & other.keys())
    if not common:
        with pytest.raises(ValueError):
            paired(one, other)
        return
    assert paired(one, other).n == len(common)
    assert paired(one, other).mean == pytest.approx(sum(one[s] - other[s] for s in common) / len(common), abs=1e-6)


def test_one_value_has_no_interval_and_no_value_is_refused() -> None:
    """Nothing is told apart by a single seed; NaN is not averaged in."""
    alone = interval([3.0])
    assert alone.mean == 3.0
    assert math.isnan(alone.low)
    assert not alone.above_zero
    assert judge(alone, 1) == NOT_TOLD_APART
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError):
            interval(bad)


@pytest.mark.parametrize("more, fewer, expected", [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125)])
def test_the_sign_test_is_the_exact_binomial(more: int, fewer: int, expected: float) -> None:
    """Two-sided, the same both ways round; pairs that agree say nothing."""
    assert sign_test(more, fewer) == sign_test(fewer, more) == pytest.approx(expected)
    assert sign_test(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert sign_test(3, 3) == 1.0


@given(st.lists(finite, min_size=2, max_size=8), st.sampled_from([1, -1]))
def test_a_verdict_turns_with_the_numbers(values: list[float], expected: int) -> None:
    """The same differences with the other sign have the opposite verdict; an interval that holds 0 has none."""
    assert [judge(interval([1.0, 2.0, 1.5]), sign) for sign in (1, -1)] == [CAME_OUT, REVERSED]
    opposite = {CAME_OUT: REVERSED, REVERSED: CAME_OUT, NOT_TOLD_APART: NOT_TOLD_APART}
    verdict = judge(interval(values), expected)
    assert judge(interval([-value for value in values]), expected) == opposite[verdict]
    assert judge(interval(values), -expected) == opposite[verdict]


def test_verdicts_over_several_settings_keep_both_directions() -> None:
    """One setting is enough, unless another says the opposite, which is not hidden."""
    assert together([CAME_OUT, NOT_TOLD_APART]) == f"{CAME_OUT} at 1 of 2 settings"
    assert together([REVERSED, REVERSED]) == f"{REVERSED} at 2 of 2 settings"
    assert together([CAME_OUT, REVERSED, CAME_OUT]) == "came out at 2 of 3 settings and the other way round at 1"
    assert together([NOT_TOLD_APART]) == NOT_TOLD_APART


@pytest.mark.parametrize(
    "form, value, expected",
    [
        (percent, 0.0423, "4.2 %"),
        (points, -0.0423, "-4.2 points"),
        (points, -1e-9, "0.0 points"),
        (significant(2, sign=True), 0.01234, "+0.012"),
        (Format(".0f", unit=" nats"), 3.0, "3 nats"),
    ],
)
def test_numbers_carry_their_unit(form: Format, value: float, expected: str) -> None:
    """A number that rounds to nothing has no sign."""
    assert form(value) == expected


def test_an_interval_is_written_with_its_unit_once() -> None:
    assert with_interval(Interval(0.5, 0.25, 0.75, 5), percent) == "50.0 % (25.0 to 75.0)"
    assert with_interval(interval([0.5]), percent) == "50.0 % (one seed)"
    assert with_interval(None, percent) == "–"


def test_settings_are_laid_over_each_other_and_left_alone() -> None:
    """Tables are merged key by key; what was laid over, and what was laid, stay as they were."""
    below, above = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": [3]}, "b": {"z": 4}}
    result = merged(below, above)
    assert result == {"a": {"x": 1, "y": [3]}, "b": {"z": 4}}
    result["a"]["y"].append(5)
    assert above == {"a": {"y": [3]}, "b": {"z": 4}}
    assert below == {"a": {"x": 1, "y": 2}, "b": 1}
