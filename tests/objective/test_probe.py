"""What a rule is found to decide by the ratio alone: exact boundaries, its weight, and what else they vary with.

Run: pytest tests/objective/test_probe.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dinghai.objective import RULES, NoParameters, PolicyLoss, TokenInputs, region_of, register_rule
from dinghai.objective.probe import probe

pytestmark = pytest.mark.filterwarnings("ignore")  # of values that no run would have

Edge = tuple[int, str, float, str]


def edges(facts: dict[str, Any]) -> list[Edge]:
    """(sign of A, region below, ratio, region above) of each boundary."""
    return [(b["advantage"], b["below"], b["ratio"], b["above"]) for b in facts["boundaries"]]


def asked(rule: str, **parameters: Any) -> dict[str, Any]:
    return probe(PolicyLoss(rule, **parameters))


def test_the_clip_ends_exactly_at_its_bounds() -> None:
    facts = asked("grpo", eps_low=0.2, eps_high=0.28, dual_clip=3.0)
    assert edges(facts) == [
        (1, "forgotten", 0.8, "inside"),
        (1, "inside", 1.28, "overshoot"),
        (-1, "escaped", 0.8, "inside"),
        (-1, "inside", 1.28, "relapse"),
        (-1, "relapse", 3.0, "dual"),
    ]
    expected = [math.log(x) for x in (0.8, 1.28, 0.8, 1.28, 3.0)]
    assert [b["log_ratio"] for b in facts["boundaries"]] == pytest.approx(expected, rel=4e-16)
    assert (facts["boundaries_vary_with"], facts["note"]) == (None, None)


def test_bounds_of_a_sequence_which_are_hundreds_of_times_nearer() -> None:
    facts = asked("gspo")
    assert edges(facts)[:2] == [(1, "forgotten", 0.9997, "inside"), (1, "inside", 1.0004, "overshoot")]
    assert facts["ratio"] == "sequence"


def test_bounds_that_stand_in_log_space() -> None:
    places = [b["log_ratio"] for b in asked("gmpo", eps_low=0.3, eps_high=0.4)["boundaries"]]
    assert places == [-0.3, 0.4, -0.3, 0.4]


def test_a_cap_and_bounds_of_one_sign_alone() -> None:
    assert edges(asked("cispo")) == [(1, "inside", 5.0, "overshoot"), (-1, "inside", 5.0, "relapse")]
    assert edges(asked("dispo")) == [
        (1, "forgotten", 0.8, "inside"),
        (1, "inside", 11.0, "overshoot"),
        (-1, "inside", 101.0, "relapse"),
    ]


def test_two_boundaries_closer_than_the_grid() -> None:
    found = [edge for edge in edges(asked("grpo", eps_high=0.2, dual_clip=1.2001)) if edge[0] == -1]
    assert found == [(-1, "escaped", 0.8, "inside"), (-1, "inside", 1.2, "relapse"), (-1, "relapse", 1.2001, "dual")]


def test_a_band_without_bounds_has_no_boundaries() -> None:
    facts = asked("grpo", eps_low=math.inf, eps_high=math.inf)
    assert facts["boundaries"] == []
    assert facts["boundaries_vary_with"] is None


@pytest.mark.parametrize(
    ("rule", "varies"),
    [
        *((name, "probability") for name in ("dcpo", "bandpo_tv", "bandpo_chi2", "bandpo_kl")),
        *((name, "probability") for name in ("dppo_tv", "dppo_kl", "tr_ppo")),
        *((name, "minibatch") for name in ("bapo", "clip_cov", "m2po", "vaco")),
        *((name, None) for name in ("kl_cov", "sapo", "importance_sampling")),  # there is nothing to vary
    ],
)
def test_what_boundaries_vary_with_is_named_and_none_is_given(rule: str, varies: str | None) -> None:
    facts = asked(rule)
    assert (facts["boundaries_vary_with"], facts["boundaries"]) == (varies, [])
    assert (facts["note"] is not None) == (facts["weights"] is None)


@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_answers(rule: str) -> None:
    facts = asked(rule)
    assert "cannot be asked" not in (facts["note"] or "")
    weights = facts["weights"]
    if weights is None:
        return
    assert 160 < len(weights["log_ratio"]) == len(weights["good"]) == len(weights["bad"]) < 200
    assert weights["log_ratio"] == sorted(set(weights["log_ratio"]))
    assert 0.0 in weights["log_ratio"]
    places = [b["log_ratio"] for b in facts["boundaries"]]
    if places:
        assert weights["log_ratio"][0] < min(places)
        assert weights["log_ratio"][-1] > max(places)


def test_the_curve_is_the_weight_and_shows_both_sides_of_each_jump() -> None:
    facts = asked("grpo", eps_low=0.2, eps_high=0.28, dual_clip=3.0)
    x, good, bad = facts["weights"].values()
    for log_ratio, w_good, w_bad in zip(x, good, bad, strict=True):
        r = math.exp(log_ratio)
        inside = {0.8, 1.28, 3.0} & {round(r, 14)}  # on a bound: decided by the last bit, looked at below
        if inside:
            continue
        assert w_good == pytest.approx(0.0 if r > 1.28 else r, rel=1e-7)
        assert w_bad == pytest.approx(0.0 if r < 0.8 or r > 3.0 else r, rel=1e-7)
    for boundary, curve in ((facts["boundaries"][1], good), (facts["boundaries"][4], bad)):
        at = x.index(boundary["log_ratio"])
        assert curve[at] == pytest.approx(boundary["ratio"])
        assert curve[at + 1] == 0.0
        assert x[at + 1] == math.nextafter(x[at], math.inf)


def test_a_weight_that_other_things_decide_is_not_given() -> None:
    for rule, word in (("gmpo", "other tokens"), ("dro", "size of the advantage"), ("dppo_tv", "probability")):
        facts = asked(rule)
        assert facts["weights"] is None
        assert word in facts["note"]


def test_what_the_rule_is() -> None:
    facts = asked("dapo", dual_clip=10.0, reduction="token-mean")
    rule = RULES["dapo"]
    assert facts["version"] == 1
    assert all(facts[key] == getattr(rule, key) for key in ("name", "title", "paper", "formula", "zero"))
    assert (facts["ratio"], facts["reduction"]) == ("token", "token-mean")
    assert facts["parameters"] == {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 10.0}


def register(name: str, region: Any, weight: Any = None) -> None:
    register_rule(
        name,
        weight=weight or (lambda x, p: x.importance_weighted),
        region=region,
        title=name,
        paper="none",
        formula="none",
        zero="never",
        parameters=NoParameters,
    )(lambda x, p: x.importance_weighted)


@pytest.fixture
def own_rules() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.usefixtures("own_rules")
def test_a_rule_of_ones_own() -> None:
    def region(x: TokenInputs, p: NoParameters) -> Tensor:
        return region_of(x.advantage, low_N=x.log_ratio < 0, high_N=x.log_ratio >= 2e-6)

    register("mine", region)
    facts = asked("mine")
    assert [b["below"] for b in facts["boundaries"]] == ["forgotten", "inside", "escaped", "inside"]
    assert [b["log_ratio"] for b in facts["boundaries"][:2]] == [0.0, pytest.approx(2e-6, rel=1e-15)]


@pytest.mark.usefixtures("own_rules")
def test_a_rule_that_goes_by_the_size_of_the_advantage() -> None:
    def region(x: TokenInputs, p: NoParameters) -> Tensor:
        return region_of(x.advantage, low_N=x.ratio < 0.5, high_N=x.ratio * x.advantage.abs() > 2)

    register("sized", region)
    assert asked("sized")["boundaries_vary_with"] == "advantage"


@pytest.mark.usefixtures("own_rules")
def test_a_rule_that_differs_with_probability_by_less_than_the_grid() -> None:
    def region(x: TokenInputs, p: NoParameters) -> Tensor:
        high = 1.5 + 1e-6 * x.logp_old.exp()
        return region_of(x.advantage, low_N=x.ratio < 0.5, high_N=x.ratio > high)

    register("hardly", region)
    assert asked("hardly")["boundaries_vary_with"] == "probability"


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize("fault", ["raises", "unknown region"])
def test_a_rule_that_cannot_be_asked_ends_no_run(fault: str) -> None:
    def region(x: TokenInputs, p: NoParameters) -> Tensor:
        if fault == "raises":
            raise RuntimeError("only for pairs")
        return torch.where(x.ratio > 2, 77, 2).to(torch.uint8)

    register("broken", region)
    facts = asked("broken")
    assert (facts["boundaries"], facts["weights"]) == ([], None)
    assert "cannot be asked about single tokens" in facts["note"]
