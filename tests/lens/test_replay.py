"""A replay decides as training did: with the run's own settings every recorded decision again, with others its own.

Run: pytest tests/lens/test_replay.py
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import recorded

from dinghai.errors import InputError
from dinghai.lens.regions import REGIONS
from dinghai.lens.replay import (
    KEYS,
    Minibatch,
    Replayed,
    cosine,
    joined,
    own_sums_of,
    recorded_objective,
    replay,
    sums_of,
)
from dinghai.lens.replay_candidates import bounds_of, candidate, default_candidates, other_rules
from dinghai.lens.replay_chunk import Chunk
from dinghai.lens.replay_compare import compare, removed_share, stopped_fraction
from dinghai.lens.replay_grid import grid_for, pair_sums, side_sums, with_bounds
from dinghai.lens.tokens import read_tokens
from dinghai.objective import RULES
from dinghai.trace import TraceReader

MISMATCH = {"rollout": {"top_p": 0.7}}  # the engine's k is about 0.7, and a little more
CORRECTIONS: dict[str, dict[str, Any]] = {
    "tis": {"cap": 0.72},
    "sequence-tis": {"cap": 0.0144},
    "mis": {"low": 0.7015},
    "icepop": {"low": 0.7015},
    "sequence-mis": {"low": 0.0},
    "geometric-mis": {"low": 0.702},
    "geometric-rejection": {"low": 0.702},
    "k3-rejection": {"threshold": 0.0559},
    "outlier-rejection": {"low": 0.7005},
    "off-policy-mask": {"delta": 0.37},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRPO with two steps of four updates, in which tokens leave the band on both sides."""
    return recorded(tmp_path_factory.mktemp("runs"), "run", steps=2)


def every_update(run: Path) -> list[Replayed]:
    reader, own = TraceReader(run / "trace"), recorded_objective(run)
    return [replay(reader, step, update, own) for step in reader.steps() for update in reader.updates(step)]


def assert_decides_as_recorded(run: Path) -> None:
    acted = 0
    for one in every_update(run):
        assert np.array_equal(one.region_N, one.tokens.region)
        assert np.array_equal(one.effect_N, one.tokens.effect)
        if one.tokens.correction is None:
            assert np.array_equal(one.weight_N, one.tokens.weight)
        assert one.as_recorded_N.all()
        assert not one.differ_N.any()
        assert np.array_equal(one.removed_N, one.tokens.removed) or one.tokens.correction is not None
        acted += int((one.weight_N != 0).sum())
    assert acted > 0


@pytest.mark.parametrize("rule", list(RULES))
def test_the_runs_own_settings_give_every_recorded_decision_again(tmp_path: Path, rule: str) -> None:
    """Region and effect of each token, and its weight to the last bit of the trace, for every rule."""
    assert_decides_as_recorded(recorded(tmp_path, "run", {"objective": {"rule": rule}}))


@pytest.mark.parametrize("name", list(CORRECTIONS))
def test_so_do_the_rollout_corrections(tmp_path: Path, name: str) -> None:
    """Weights to one unit of the last bit, since the trace keeps their factor to as many bits."""
    run = recorded(tmp_path, "run", MISMATCH, {"objective": {"corrections": {name: CORRECTIONS[name]}}})
    assert_decides_as_recorded(run)
    assert any((one.tokens.correction != 1).any() for one in every_update(run))


def test_the_factors_of_the_runs_own_correction_are_the_recorded_ones(tmp_path: Path) -> None:
    """What they were computed from is rounded in the trace, which adds up over a long sequence."""
    run = recorded(tmp_path, "run", MISMATCH, {"objective": {"corrections": {"sequence-tis": {"cap": 2.0}}}})
    tokens = read_tokens(TraceReader(run / "trace"), 1, 0)
    coarse = type(tokens)(dict(tokens.columns) | {"logp_sampler": np.round(tokens.logp_sampler, 1)})
    assert Minibatch(coarse).replay(recorded_objective(run)).as_recorded_N.all()


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"rule": "clip_cov", "parameters": {"cov_low": 0.01, "share": 0.1}}},
        {"objective": {"rule": "bapo", "corrections": {"tis": {}, "geometric-rejection": {"low": 0.7}}}},
        {"objective": {"rule": "gspo", "kl": {"beta": 0.05}}},
        {"objective": {"rule": "ppo", "dual_clip": 1.3, "reduction": "seq-mean-token-sum-norm"}},
        {"rollout": {"overlong": "mask", "prompts": 8, "max_new_tokens": 40}},
        {"advantage": {"kind": "gae"}},
    ],
    ids=["tokens drawn by lot", "two corrections", "kl in the loss", "dual clip", "masked samples", "critic"],
)
def test_so_does_what_settings_combine(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = recorded(tmp_path, "run", MISMATCH, {"update": {"micro_batch_tokens": 64}}, changes)
    assert_decides_as_recorded(run)


def test_a_decision_that_was_recorded_otherwise_is_seen(run: Path) -> None:
    """The comparison with the record is no formality."""
    tokens = read_tokens(TraceReader(run / "trace"), 1, 1)
    row = int(np.flatnonzero(tokens.weight)[0])
    weight = tokens.weight.copy()
    weight[row] = np.nextafter(weight[row], np.float32(np.inf))
    changed = Minibatch(type(tokens)(dict(tokens.columns) | {"weight": weight})).replay(recorded_objective(run))
    assert np.flatnonzero(~changed.as_recorded_N).tolist() == [row]


def test_without_bounds_nothing_is_removed_and_the_gradient_is_that_of_importance_sampling(run: Path) -> None:
    own = recorded_objective(run)
    unbounded = candidate(own, {"eps_low": math.inf, "eps_high": math.inf}).policy_loss
    free = candidate(own, rule="importance_sampling").policy_loss
    reader = TraceReader(run / "trace")
    for update in range(4):
        one, other = (replay(reader, 2, update, objective) for objective in (unbounded, free))
        assert not one.removed_N.any()
        assert not one.stopped_N.any()
        assert np.array_equal(one.signed_N, other.signed_N)
        assert np.allclose(one.gradient_N, one.decided.gradient, rtol=2**-15)


def test_the_runs_own_settings_point_the_same_way_and_others_do_not(run: Path) -> None:
    free = candidate(recorded_objective(run), rule="importance_sampling").policy_loss
    first, later = np.zeros((2, len(KEYS))), np.zeros((2, len(KEYS)))  # of the run, of the other
    for one in every_update(run):
        assert np.array_equal(sums_of(one), own_sums_of(one))
        at = first if (one.tokens.update == 0).all() else later
        at += np.stack([own_sums_of(one), sums_of(Minibatch(one.tokens).replay(free))])
    for own, other in (first, later):
        assert cosine(own, own) == pytest.approx(1, abs=1e-12)
        assert own[KEYS.index("differ")] == 0
        assert (cosine(other, own) < 0.99) == (other[KEYS.index("differ")] > 0)
    assert first[1][KEYS.index("differ")] == 0  # r = 1 before the first update
    assert later[1][KEYS.index("differ")] > 0


def test_wider_bounds_never_stop_more(run: Path) -> None:
    own = recorded_objective(run)
    tokens = joined([one.tokens for one in every_update(run)])
    stopped = [Minibatch(tokens).replay(with_bounds(own, eps, eps)).stopped_N for eps in (0.003, 0.03, 0.3, 0.9)]
    assert stopped[0].any()
    for narrow_N, wide_N in itertools.pairwise(stopped):
        assert not (wide_N & ~narrow_N).any()
        assert wide_N.sum() < narrow_N.sum()


def test_with_one_update_a_batch_no_candidate_differs(tmp_path: Path) -> None:
    """r is 1 everywhere, so all rules that are REINFORCE there decide alike."""
    run = recorded(tmp_path, "run", {"update": {"epochs": 1, "minibatches": 1}})
    own = recorded_objective(run)
    asked = [one for one in default_candidates(own) if "on-policy-reinforce" not in one.policy_loss.rule.breaks]
    found = compare(run, asked)
    assert len(found.compared) > 5
    for one in found.compared:
        assert (one.first, one.examples) == (None, [])
        assert np.allclose(one.sums[:, : KEYS.index("differ")], found.own_sums[:, : KEYS.index("differ")])
        assert one.sums[0, KEYS.index("differ")] == 0


def test_a_comparison_adds_up_what_each_update_gives(run: Path) -> None:
    own = recorded_objective(run)
    dapo = candidate(own, {"eps_low": 0.05, "eps_high": 0.28})
    found = compare(run, [dapo])
    reader = TraceReader(run / "trace")
    by_hand = [[replay(reader, step, update, dapo.policy_loss) for step in (1, 2)] for update in range(4)]
    for place, both in enumerate(by_hand):
        assert np.allclose(found.compared[0].sums[place], sum(sums_of(one) for one in both), rtol=1e-12)
    tokens = [one for both in by_hand for one in both]
    signal = sum(int(one.tokens.signal.sum()) for one in tokens)
    assert stopped_fraction(found.compared[0].sums) == sum(int(one.stopped_N.sum()) for one in tokens) / signal
    lost, had = (sum(float(x.sum(dtype=np.float64)) for x in xs) for xs in (
        [one.removed_N for one in tokens], [one.decided.gradient for one in tokens]))  # fmt: skip
    assert removed_share(found.compared[0].sums) == pytest.approx(lost / had)
    assert (found.tokens, found.as_recorded, found.steps) == (sum(len(one.tokens) for one in tokens),) * 2 + ([1, 2],)
    assert found.compared[0].first == (1, 1)


def test_examples_are_tokens_that_differ_most_first(run: Path) -> None:
    reader, free = TraceReader(run / "trace"), candidate(recorded_objective(run), rule="importance_sampling")
    found = compare(run, [free]).compared[0].examples
    assert [one.apart for one in found] == sorted((one.apart for one in found), reverse=True)
    for one in found:
        there = replay(reader, one.step, one.update, free.policy_loss)
        tokens = there.tokens
        row = int(np.flatnonzero((tokens.sample == one.sample) & (tokens.position == one.position))[0])
        assert one.own == ("overshoot", "stopped") or one.own == ("escaped", "stopped")
        assert one.other == ("inside", "kept")
        assert (int(tokens.token[row]), float(tokens.ratio[row])) == (one.token, one.ratio)
        assert REGIONS[tokens.region[row]] == one.own[0]
        samples = reader.samples(one.step, ["sample", "group"]).to_pydict()
        assert samples["group"][samples["sample"].index(one.sample)] == one.group
        assert one.apart == pytest.approx(abs(there.signed_N[row] - there.own_signed_N[row]))


@pytest.mark.parametrize("rule", ["grpo", "gspo", "gmpo", "dppo_tv"])
def test_sums_of_a_grid_are_those_of_direct_replays(tmp_path: Path, rule: str) -> None:
    """Where the bounds act apart, the sums of both sides added; where they do not (GMPO), those of each pair."""
    run = recorded(tmp_path, "run", {"objective": {"rule": rule}})
    own, reader = recorded_objective(run), TraceReader(run / "trace")
    chunk = Chunk(reader, [(1, update) for update in range(4)])
    part_N = chunk.update_place(range(4))
    grid = grid_for(own, chunk.tokens)
    assert grid is not None
    assert grid.separable == (rule != "gmpo")
    bounds = bounds_of(own)
    assert bounds is not None
    assert (grid.low[grid.own[0]], grid.high[grid.own[1]]) == (bounds.low_value, bounds.high_value)
    if grid.separable:
        below, above = side_sums(own, grid, chunk.tokens, part_N, 4)
        both = below[:, :, None] + above[:, None, :]
    else:
        both = pair_sums(own, grid, chunk.tokens, part_N, 4)
    stopped = KEYS.index("stopped")
    assert both[..., stopped].min() < both[..., stopped].max()
    for low, high in ((0, 0), (0, -1), (-1, 0), (3, 5), grid.own):
        direct = chunk.replay(with_bounds(own, grid.low[low], grid.high[high]))
        assert np.allclose(sums_of(direct, part_N, 4), both[:, low, high], rtol=1e-9, atol=1e-12)


def test_tokens_of_several_updates_are_decided_as_by_themselves(run: Path) -> None:
    """Ids of samples come again in every update; ratios of sequences must not mix them."""
    reader = TraceReader(run / "trace")
    places = [(step, update) for step in (1, 2) for update in range(4)]
    chunk = Chunk(reader, places)
    for one in other_rules(recorded_objective(run)):
        alone = [replay(reader, *place, one.policy_loss).weight_N for place in places]
        assert np.array_equal(chunk.replay(one.policy_loss).weight_N, np.concatenate(alone))


def test_a_rule_that_needs_the_whole_minibatch_is_told_apart_where_the_trace_has_a_part(tmp_path: Path) -> None:
    run = recorded(tmp_path, "run", {"trace": {"tokens": 100}})
    own = recorded_objective(run)
    found = compare(run, [candidate(own, rule="bapo"), candidate(own, rule="cispo")])
    assert found.as_recorded == found.tokens
    about = " ".join(found.notes)
    assert "budget left some prompts out" in about
    assert "bapo" in about
    assert "cispo" not in about


def test_a_correction_of_another_kind_is_computed_from_the_engines_log_probs(tmp_path: Path) -> None:
    from dinghai.objective.correction import build_correction

    run = recorded(tmp_path, "run", MISMATCH)
    own = recorded_objective(run)
    reader = TraceReader(run / "trace")
    halved = candidate(own, correction=[build_correction("tis", cap=0.5)]).policy_loss
    one = replay(reader, 1, 0, halved)
    scored_N = one.tokens.scored & one.tokens.signal
    assert np.array_equal(one.weight_N[scored_N], one.tokens.weight[scored_N] / 2)
    dropped = candidate(own, correction=[build_correction("mis", low=0.7018)]).policy_loss
    one = replay(reader, 1, 0, dropped)
    outside_N = np.exp(one.tokens.logp_old - one.tokens.logp_sampler) < 0.7018
    assert np.array_equal(one.region_N == REGIONS.index("dropped"), outside_N & scored_N)
    assert sums_of(one)[KEYS.index("stopped/dropped")] == (outside_N & scored_N).sum()


def test_a_run_of_a_rule_that_is_not_registered_asks_for_its_file(run: Path, tmp_path: Path) -> None:
    text = (run / "config.json").read_text().replace('"rule": "grpo"', '"rule": "mine"')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"'mine' is none of Dinghai's: give the file that .* with --rule-file"):
        recorded_objective(tmp_path)


def test_a_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        recorded_objective(tmp_path)
