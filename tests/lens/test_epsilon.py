"""The advice on ε, against runs whose ratios are put there: where ranges begin and end, what is kept.

Run: pytest tests/lens/test_epsilon.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from epsilon_runs import spread_out, write_metrics, write_run

from dinghai.lens.epsilon import advise
from dinghai.lens.epsilon_advice import CRITERIA, Advice, BoundAdvice, KnownNoise
from dinghai.lens.epsilon_bounds import bounds_of, published, why_no_bounds
from dinghai.lens.epsilon_evidence import Evidence, kl_at
from dinghai.lens.epsilon_words import sentences
from dinghai.lens.noise import Apart, engine_apart
from dinghai.lens.replay import recorded_objective
from dinghai.lens.tokens import read_tokens
from dinghai.objective import RULES, PolicyLoss
from dinghai.trace import TraceReader

NORMAL: dict[str, Any] = {"objective": {"rule": "grpo", "eps_low": 0.2, "eps_high": 0.2}}


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log-ratios with a standard deviation of 0.2, ε 0.2, no noise."""
    return write_run(tmp_path_factory.mktemp("runs") / "normal", *spread_out(200, 10), **NORMAL)


def of(advice: Advice, name: str) -> BoundAdvice:
    return next(one for one in advice.bounds if one.bound.name == name)


def why(advice: Advice) -> str | None:
    return None if advice.nothing is None else advice.nothing.why


def test_what_is_said_of_the_value_that_was_set_is_what_the_run_did(normal: Path) -> None:
    recorded = read_tokens(TraceReader(normal / "trace"), 2, 1)  # all steps are alike
    for name, sign in (("eps_low", -1), ("eps_high", 1)):
        row = of(advise(normal), name).values[0.2]
        concerned = recorded.advantage * sign > 0
        assert row.taken.stopped == pytest.approx(recorded.stopped[concerned].mean())
        gradient = recorded.gradient[concerned].sum(dtype=np.float64)
        assert row.taken.gradient == pytest.approx(recorded.removed[concerned].sum(dtype=np.float64) / gradient)
        assert list(row.taken.by_update) == [1]


def test_a_range_begins_and_ends_at_its_criteria(normal: Path) -> None:
    """One round value further and a criterion no longer holds; in the middle all do."""
    advice, half, little = advise(normal), CRITERIA["takes_most"].value, CRITERIA["takes_little"].value
    evidence = Evidence(TraceReader(normal / "trace"), [1, 2, 3], recorded_objective(normal))
    for one in advice.bounds:
        assert one.low is not None
        assert one.high is not None
        values = one.bound.values
        beyond = [values[values.index(one.low) - 1], one.low, one.high, values[values.index(one.high) + 1]]
        taken = [evidence.taken(one.bound, value).gradient for value in beyond]
        assert taken[0] > half >= taken[1] > taken[2] >= little > taken[3]
        assert not one.low_is_noise


def test_of_a_large_record_a_part_is_looked_at(normal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = advise(normal)
    monkeypatch.setattr("dinghai.lens.epsilon_evidence.TOKENS_AT_MOST", 3000)
    part = advise(normal)
    assert (whole.one_in, part.one_in) == (1, 2)
    assert whole.tokens == 6000
    assert 2400 < part.tokens < 3600
    assert of(part, "eps_low").low == pytest.approx(of(whole, "eps_low").low, rel=0.5)


def test_a_value_within_the_range_is_kept(normal: Path) -> None:
    advice = advise(normal)
    assert [one.kind for one in advice.bounds] == ["keep", "keep"]
    assert advice.changes == {}
    assert "Keep eps_low 0.2 and eps_high 0.2" in sentences(advice)[0]


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ({"rule": "grpo", "eps_low": 0.001, "eps_high": 0.001}, {"eps_low": 0.2, "eps_high": 0.2}),  # the default
        ({"rule": "grpo", "eps_low": 0.9, "eps_high": 5.0}, {"eps_low": 0.2, "eps_high": 0.2}),
        ({"rule": "grpo", "eps_low": 0.001, "eps_high": 0.3}, {"eps_low": 0.2}),
        ({"rule": "grpo", "eps_low": 10.0, "eps_high": 10.0}, {}),  # DeepSeek-R1's: too wide to act, and known
    ],
)
def test_a_value_beyond_the_range_is_changed_to_a_known_one(
    tmp_path: Path, objective: dict[str, Any], changes: dict[str, float]
) -> None:
    advice = advise(write_run(tmp_path, *spread_out(200, 10), objective=objective))
    assert advice.changes == changes


def test_the_unit_of_another_ratio_is_seen(tmp_path: Path) -> None:
    """GSPO with the 0.2 of token ratios: the mean over ten tokens spreads by 0.03, so 0.2 never acts."""
    shifts, advantages = spread_out(400, 1, scale=0.03)
    objective = {"rule": "gspo", "eps_low": 0.2, "eps_high": 0.2}
    advice = advise(write_run(tmp_path, np.repeat(shifts, 10, axis=1), advantages, objective=objective))
    for one in advice.bounds:
        assert one.kind == "change"
        assert one.low is not None
        assert one.high is not None
        assert one.low <= (one.suggestion or 0) <= one.high < 0.2
    assert any("tenfold" in sentence for sentence in sentences(advice))


def test_noise_sets_the_lower_end(tmp_path: Path) -> None:
    """Most tokens do not move at all, a few by 1 nat; engine and trainer differ by 0.03 or so."""
    generator = np.random.default_rng(2)
    moved = np.where(generator.random((200, 10)) < 0.2, generator.choice([-1.0, 1.0], (200, 10)), 0.0)
    noise = generator.normal(0, 0.03, (200, 10))
    run = write_run(tmp_path, moved, spread_out(200, 10)[1], apart_BL=noise, **NORMAL)
    one = of(advise(run), "eps_high")
    assert one.low_is_noise
    # A good token that did not move is stopped where the noise is beyond log(1+ε): one in a hundred of all good ones.
    still = (moved[::2] == 0).mean()
    quantile = np.quantile(noise, 1 - CRITERIA["mistaken"].value / still)
    assert one.low == pytest.approx(math.expm1(quantile), rel=0.25)  # neighbours are up to 25 % apart
    assert "noise has it stop" in " ".join(sentences(advise(run)))


def test_the_share_stopped_by_mistake_is_that_of_the_noise(tmp_path: Path) -> None:
    """No token moved; half of the evaluations are off by 0.1 to either side."""
    half = np.tile([-0.1, 0.1], (200, 5))
    run = write_run(tmp_path, np.zeros((200, 10)), spread_out(200, 10)[1], apart_BL=half, **NORMAL)
    policy_loss, reader = recorded_objective(run), TraceReader(run / "trace")
    evidence = Evidence(reader, [1, 2, 3], policy_loss)
    noise = Apart.of(half.ravel(), np.full(2000, -8.0, dtype=np.float32), np.repeat(np.arange(200), 10), "token")
    for bound in bounds_of(policy_loss):
        assert evidence.mistaken(bound, 0.2, noise) == 0
        assert evidence.mistaken(bound, 0.05, noise) == pytest.approx(0.5, abs=0.03)
    assert why(advise(run)) is None
    assert {one.nothing.why for one in advise(run).bounds if one.nothing} == {"idle"}


def test_noise_is_drawn_from_tokens_of_similar_probability() -> None:
    logp = np.repeat(np.array([-0.001, -7.0], dtype=np.float32), 500)
    noise = Apart.of(np.repeat([0.0, 0.3], 500), logp, np.arange(1000), "token")
    drawn = noise.drawn(logp, np.arange(1000), np.random.default_rng(0))
    assert (drawn[:500] == 0).all()
    assert (drawn[500:] == np.float32(0.3)).all()


@pytest.mark.parametrize(("ratio", "each"), [("sequence", 0.25), ("sequence-product", 0.05)])
def test_tokens_of_a_sequence_share_its_noise(ratio: str, each: float) -> None:
    sample = np.repeat(np.arange(8), 5)
    apart = np.full(40, 0.25 if ratio == "sequence" else 0.05)
    noise = Apart.of(apart, np.zeros(40, dtype=np.float32), sample, ratio)
    assert noise.what == "sequences"
    assert noise.quantile(1.0) == pytest.approx(0.25)
    np.testing.assert_allclose(noise.drawn(np.zeros(40), sample, np.random.default_rng(0)), each, rtol=1e-6)


@pytest.mark.parametrize(("logp_old", "reachable"), [(math.log(0.9), False), (math.log(0.5), True)])
def test_likely_tokens_are_out_of_reach_of_the_upper_bound(tmp_path: Path, logp_old: float, reachable: bool) -> None:
    """π_old above 1/1.2 leaves no room for r > 1.2."""
    shifts, advantages = spread_out(200, 10, scale=0.1)
    run = write_run(tmp_path, np.minimum(shifts, 0.1), advantages, logp_old=logp_old, **NORMAL)
    policy_loss = recorded_objective(run)
    evidence = Evidence(TraceReader(run / "trace"), [1, 2, 3], policy_loss)
    low, high = bounds_of(policy_loss)
    assert evidence.unreachable(low) is None
    assert evidence.unreachable(high) == ((0.0, 0.0) if reachable else (1.0, pytest.approx(1.0)))


def test_the_kl_of_a_token_on_the_bound_is_k3() -> None:
    low, high = bounds_of(PolicyLoss("grpo"))
    assert kl_at(high, 0.2) == pytest.approx(0.2 - math.log(1.2))
    assert kl_at(low, 0.2) == pytest.approx(-0.2 - math.log(0.8))
    assert kl_at(low, 10.0) is None
    assert kl_at(bounds_of(PolicyLoss("gmpo"))[1], 0.4) == pytest.approx(math.exp(0.4) - 1.4)
    assert kl_at(bounds_of(PolicyLoss("dppo_kl"))[0], 0.05) == 0.05
    assert kl_at(bounds_of(PolicyLoss("gspo"))[1], 0.0004) == pytest.approx(math.log(1.0004))


@pytest.mark.parametrize(
    ("tables", "steps", "reason", "said"),
    [
        ({"update": {"epochs": 1, "minibatches": 1}}, 1, "one-update", "update.epochs or update.minibatches"),
        ({"objective": {"rule": "reinforce"}}, 1, "no-bounds", "REINFORCE has no ε"),
        ({"objective": {"rule": "sapo"}}, 1, "no-bounds", "tau_pos"),
        ({}, 0, "no-trace", "trace.enabled"),
        ({}, 2, "too-few-steps", "2 recorded steps"),
        ({"rollout": {"top_p": 0.9}}, 3, "noise-unknown", "--measure"),
    ],
)
def test_without_grounds_there_is_no_advice(
    tmp_path: Path, tables: dict[str, Any], steps: int, reason: str, said: str
) -> None:
    run = write_run(tmp_path, *spread_out(200, 10), steps=steps, **tables)
    advice = advise(run)
    assert why(advice) == reason
    assert said in sentences(advice)[0]
    assert advice.bounds == []


def test_few_tokens_are_too_few(tmp_path: Path) -> None:
    assert why(advise(write_run(tmp_path, *spread_out(10, 10), **NORMAL))) == "too-few-tokens"


def test_noise_that_was_measured_takes_the_place_of_that_in_the_trace(tmp_path: Path) -> None:
    run = write_run(tmp_path, *spread_out(200, 10), rollout={"top_p": 0.9}, **NORMAL)
    logp = np.full(1000, -8.0, dtype=np.float32)
    quiet, loud = (Apart.of(np.full(1000, size), logp, np.arange(1000), "token") for size in (1e-6, 0.5))
    advice = advise(run, [KnownNoise(loud, "other precision", of_ratio=False), KnownNoise(quiet, "padding")])
    assert why(advice) is None
    assert advice.noises[0].known.source == "padding"
    assert of(advice, "eps_high").kind == "keep"
    assert why(advise(run, [KnownNoise(loud, "other precision", of_ratio=False)])) == "noise-unknown"


def test_noise_as_large_as_the_ratios_supports_no_value(tmp_path: Path) -> None:
    shifts, advantages = spread_out(200, 10, scale=1e-3)
    noise = np.random.default_rng(3).normal(0, 2e-3, shifts.shape)
    advice = advise(write_run(tmp_path, shifts, advantages, apart_BL=noise, **NORMAL))
    assert {one.nothing.why for one in advice.bounds if one.nothing} == {"within-noise"}
    assert "Mend the noise first" in sentences(advice)[0]


def test_ratios_that_hardly_move_support_no_value(tmp_path: Path) -> None:
    shifts, advantages = spread_out(200, 10, scale=1e-7)
    advice = advise(write_run(tmp_path, shifts, advantages, apart_BL=1e-3, **NORMAL))
    assert {one.nothing.why for one in advice.bounds if one.nothing} == {"idle"}
    assert [one.kind for one in advice.bounds] == ["none", "none"]


FELL = [{"entropy": 1.0 - 0.03 * step, "reward/mean": 0.5 - 0.001 * step} for step in range(30)]
ROSE = [row | {"reward/mean": 0.2 + 0.02 * step} for step, row in enumerate(FELL)]
HELD = [row | {"entropy": 1.0} for row in FELL]


@pytest.mark.parametrize(("rows", "advised"), [(FELL, 0.28), (ROSE, 0.2), (HELD, 0.2), ([], 0.2)])
def test_the_upper_bound_is_widened_where_entropy_is_spent_for_nothing(
    tmp_path: Path, rows: list[dict[str, float]], advised: float
) -> None:
    shifts, advantages = spread_out(200, 10)
    shifts[advantages < 0] *= 0.5  # so that the upper bound takes more than the lower one
    run = write_run(tmp_path, shifts, advantages, **NORMAL)
    write_metrics(run, rows)
    advice = advise(run)
    assert of(advice, "eps_high").suggestion == advised
    assert ("Entropy fell" in " ".join(sentences(advice))) == (advised == 0.28)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_bounds_with_values_or_a_reason(name: str) -> None:
    policy_loss = PolicyLoss(name)
    bounds = bounds_of(policy_loss)
    if not bounds:
        assert why_no_bounds(policy_loss.rule).endswith(".")
    for bound in bounds:
        assert bound.values == sorted(bound.values)
        assert bound.values[0] < bound.value
        assert all(bound.info.admits(value) for value in bound.values)
        papers = published(bound, policy_loss.rule)
        assert papers[0].value == bound.value  # the defaults are papers' values
        assert len({paper.value for paper in papers}) == len(papers)


def test_values_of_tokens_are_not_offered_for_sequences() -> None:
    for bound in bounds_of(PolicyLoss("gspo")):
        values = [paper.value for paper in published(bound, RULES["gspo"])]
        assert max(values) <= 0.01
        assert any(paper.who.startswith("ScaleRL") for paper in published(bound, RULES["gspo"]))
    sequences = PolicyLoss("grpo", ratio="sequence", eps_low=3e-4, eps_high=4e-4)
    assert all(paper.value <= 0.01 for paper in published(bounds_of(sequences)[0], RULES["grpo"]))


def test_engines_log_probs_that_were_taken_for_the_trainers_tell_nothing(tmp_path: Path) -> None:
    tables: dict[str, Any] = {"update": {"epochs": 2, "minibatches": 1, "shortcuts": {"old_log_probs": "engine"}}}
    run = write_run(tmp_path / "one", *spread_out(10, 10), **tables)
    config = {"rollout": {"top_p": 1.0, "top_k": 0}, "objective": {"ratio": "token"}} | tables
    assert engine_apart(run, config, [1, 2]) is None
    run = write_run(tmp_path / "other", *spread_out(10, 10), apart_BL=0.01, **tables)
    found = engine_apart(run, config, [1, 2])
    assert found is not None
    assert found.quantile(0.5) == pytest.approx(0.01, abs=1e-5)
