"""Proves that statistics add exactly over any split and order, and that each metric is what its name says.

Run: pytest tests/objective/test_stats.py
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from objective_batches import RULE_CASES, backward, random_batch

from dinghai.errors import InputError
from dinghai.objective import Effect, Normalizer, PolicyLoss, Region
from dinghai.objective.stats import GRID, SUMS, on_grid

EPS = {"eps_low": 0.2, "eps_high": 0.28}


@pytest.mark.parametrize("rule, given", RULE_CASES)
@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_bitwise_equal_over_splits_and_orders(
    rule: str, given: dict[str, float], reduction: str, dtype: torch.dtype
) -> None:
    policy_loss = PolicyLoss(rule, reduction=reduction, kl="k3", **given)
    batch = random_batch(rows=60, length=33, seed=7, dtype=dtype)
    whole = policy_loss(**batch.padded()).stats
    shuffler = random.Random(0)
    for size in (1, 2, 7, 16, 59):
        order = list(range(60))
        shuffler.shuffle(order)
        parts = [policy_loss(**batch.rows(order[i : i + size]).packed()).stats for i in range(0, 60, size)]
        left = sum(parts)
        shuffler.shuffle(parts)
        while len(parts) > 1:  # as a tree
            parts = [sum(parts[i : i + 2]) for i in range(0, len(parts), 2)]
        for merged in (left, parts[0]):
            assert torch.equal(merged.sums, whole.sums)
            assert torch.equal(merged.maxima, whole.maxima)
            assert merged.metrics() == whole.metrics()


def test_sums_do_not_depend_on_the_normalizer() -> None:
    batch = random_batch()
    alone, _ = backward(PolicyLoss("grpo"), batch.padded())
    part, _ = backward(PolicyLoss("grpo"), batch.padded(), normalizer=Normalizer(tokens=1000, sequences=100))
    assert torch.equal(alone.stats.sums, part.stats.sums)


def test_the_grid_makes_addition_exact_and_hides_nothing() -> None:
    x = torch.randn(100_000, dtype=torch.float64)
    gridded = on_grid(x)
    assert (gridded - x).abs().max() <= GRID / 2
    exact = math.fsum(gridded.tolist())
    assert gridded.sum().item() == exact == gridded.flip(0).cumsum(0)[-1].item()
    strange = on_grid(torch.tensor([float("nan"), float("inf"), float("-inf"), 1e300]))
    assert strange.isnan().tolist() == [True, False, False, False]
    assert strange[1:3].tolist() == [math.inf, -math.inf]


def by_hand() -> PolicyLoss:
    return PolicyLoss("grpo", **EPS, dual_clip=3.0)


RATIO = torch.tensor([[1.0, 2.0, 0.5, 2.0], [0.5, 4.0, 1.1, 7.0], [2.0, 1.0, 9.0, 9.0]], dtype=torch.float64)
ADVANTAGE = torch.tensor([[1.0, 1.0, 1.0, -1.0], [-2.0, -2.0, -2.0, 5.0], [0.0, 0.0, 3.0, 3.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)


def metrics_by_hand(reduction: str = "token-mean") -> dict[str, float]:
    """p_new = 0.5, and 0.75 for the token at [0, 1]."""
    p = torch.full_like(RATIO, 0.5)
    p[0, 1] = 0.75
    out = PolicyLoss("grpo", **EPS, dual_clip=3.0, reduction=reduction)(
        logp_new=p.log(), logp_old=p.log() - RATIO.log(), advantage=ADVANTAGE, mask=MASK
    )
    names = [[Region(int(r)).name.lower() for r in row] for row in out.decision.region]
    assert names == [
        ["inside", "overshoot", "forgotten", "relapse"],
        ["escaped", "dual", "inside", "masked"],
        ["no_signal", "no_signal", "masked", "masked"],
    ]
    return out.stats.metrics()


def test_metrics_by_hand() -> None:
    m = metrics_by_hand()

    def near(name: str, expected: float) -> None:
        assert m[name] == pytest.approx(expected, abs=1e-8), name

    assert (m["tokens"], m["signal_tokens"], m["nonfinite_tokens"]) == (9, 7, 0)
    near("stopped_fraction", 3 / 7)  # overshoot, escaped, dual
    near("band_fraction", 5 / 7)  # all but the two inside
    near("region/inside_fraction", 2 / 9)
    near("region/no_signal_fraction", 2 / 9)
    for name in ("overshoot", "forgotten", "relapse", "escaped", "dual"):
        near(f"region/{name}_fraction", 1 / 9)
    near("effect/stopped_fraction", 3 / 9)
    near("effect/kept_fraction", 4 / 9)
    near("effect/none_fraction", 2 / 9)
    # |w0| = |r·A|: 1, 2, 0.5, 2 | 1, 8, 2.2 = 16.7; removed: 2 (overshoot), 1 (escaped), 8 (dual)
    near("weight_removed/overshoot", 2 / 16.7)
    near("weight_removed/escaped", 1 / 16.7)
    near("weight_removed/dual", 8 / 16.7)
    near("weight_removed/total", 11 / 16.7)
    near("weight_removed/relapse", 0.0)
    # times 1-p = 0.5, but 0.25 for the overshoot: 16.7/2 - 2·0.25 = 7.85
    near("gradient_removed/overshoot", 0.5 / 7.85)
    near("gradient_removed/escaped", 0.5 / 7.85)
    near("gradient_removed/dual", 4.0 / 7.85)
    near("gradient_removed/total", 5.0 / 7.85)
    near("weight_unclipped", 16.7)  # the factor of token-mean is 1
    near("gradient_unclipped", 7.85)
    r = RATIO[MASK & (ADVANTAGE != 0)].tolist()  # 1, 2, 0.5, 2, 0.5, 4, 1.1; what has no advantage is not measured
    near("ratio_mean", sum(r) / 7)
    near("ess_fraction", sum(r) ** 2 / (7 * sum(x * x for x in r)))
    near("kl_old_new_k1", -sum(math.log(x) for x in r) / 7)
    near("kl_old_new_k3", sum(x - 1 - math.log(x) for x in r) / 7)
    near("log_ratio_abs_max", math.log(4))
    # J: 1, 1.28, 0.5, -2 | 0.8·-2, 3·-2, -2.2 | 0, 0
    near("surrogate_mean", (1 + 1.28 + 0.5 - 2 - 1.6 - 6 - 2.2) / 9)


def test_shares_weigh_tokens_as_the_reduction_does() -> None:
    """seq-mean-token-mean: the rows have 4, 3 and 2 tokens, so their factors are 1/4, 1/3 and 1/2."""
    m = metrics_by_hand("seq-mean-token-mean")
    total = (1 + 2 + 0.5 + 2) / 4 + (1 + 8 + 2.2) / 3
    assert m["weight_removed/overshoot"] == pytest.approx(2 / 4 / total, abs=1e-8)
    assert m["weight_removed/dual"] == pytest.approx(8 / 3 / total, abs=1e-8)
    assert m["weight_removed/total"] == pytest.approx((2 / 4 + 9 / 3) / total, abs=1e-8)
    assert m["surrogate_mean"] == pytest.approx(((1 + 1.28 + 0.5 - 2) / 4 + (-1.6 - 6 - 2.2) / 3) / 3, abs=1e-8)
    assert m["stopped_fraction"] == 3 / 7  # counts do not


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean"])
def test_surrogate_mean_is_minus_the_policy_loss(reduction: str) -> None:
    batch = random_batch(rows=9, length=9)
    out = PolicyLoss("grpo", reduction=reduction, kl="k3")(**batch.padded())
    assert out.stats.metrics()["surrogate_mean"] == pytest.approx(-out.loss.item(), abs=1e-8)


def test_kl_to_old_is_of_tokens_even_where_the_ratio_is_of_sequences() -> None:
    batch = random_batch(rows=9, length=9)
    options = {"eps_low": 0.05, "eps_high": 0.05}
    token = PolicyLoss("grpo", **options, kl="k1")(**batch.padded()).stats.metrics()
    sequence = PolicyLoss("grpo", **options, kl="k1", ratio="sequence")(**batch.padded()).stats.metrics()
    for name in ("kl_old_new_k1", "kl_old_new_k3", "log_ratio_abs_max", "kl_ref_k1"):
        assert token[name] == sequence[name]
    assert token["ratio_mean"] != sequence["ratio_mean"]


def test_kl_to_the_reference_is_of_all_tokens_and_kl_to_the_old_policy_of_those_with_a_signal() -> None:
    """The penalty acts on tokens without a signal too; what the rule met is of those that it acts on."""
    logp_old_BT, mask_BT = torch.full((2, 3), -1.0), torch.ones(2, 3, dtype=torch.bool)
    logp_new_BT = logp_old_BT + torch.tensor([[0.5], [0.0]])
    advantage_B = torch.tensor([0.0, 1.0])
    policy_loss = PolicyLoss("grpo", kl="k1")
    metrics = policy_loss(
        logp_new=logp_new_BT, logp_old=logp_old_BT, advantage=advantage_B, mask=mask_BT, logp_ref=logp_old_BT
    ).stats.metrics()
    assert metrics["kl_ref_k1"] == 0.25
    assert metrics["kl_old_new_k1"] == 0.0


def test_on_policy_numbers_are_exact() -> None:
    batch = random_batch(dtype=torch.float32)
    arguments = batch.padded() | {"logp_old": batch.logp_new_BT}
    del arguments["logp_ref"]
    m = PolicyLoss("grpo")(**arguments).stats.metrics()
    assert m["kl_old_new_k1"] == m["kl_old_new_k3"] == m["log_ratio_abs_max"] == 0.0
    assert m["ratio_mean"] == m["ess_fraction"] == 1.0
    assert m["stopped_fraction"] == m["band_fraction"] == m["weight_removed/total"] == 0.0


def test_fractions_of_no_signal_are_zero() -> None:
    batch = random_batch()
    batch.advantage_B[:] = 0.0
    arguments = batch.padded()
    del arguments["logp_ref"]
    m = PolicyLoss("grpo")(**arguments).stats.metrics()
    assert m["signal_tokens"] == m["stopped_fraction"] == m["band_fraction"] == m["gradient_removed/total"] == 0.0
    assert m["region/no_signal_fraction"] == m["effect/none_fraction"] == 1.0
    measured = {"kl_old_new_k1", "kl_old_new_k3", "ratio_mean", "ess_fraction", "log_ratio_abs_max"}
    assert not measured & m.keys(), "a mean over no token"


def test_what_tokens_without_an_advantage_hold_changes_no_statistic() -> None:
    """So it changes none whether they are scored; with a reference, whose penalty acts on them, they always are."""
    policy_loss = PolicyLoss("grpo")
    arguments = random_batch(rows=9, length=9).packed()
    del arguments["logp_ref"]
    silent_B = torch.arange(9) % 3 == 0
    arguments["advantage"] = arguments["advantage"].masked_fill(silent_B, 0.0)
    other = dict(arguments)
    silent_N = torch.repeat_interleave(silent_B, arguments["cu_seqlens"].diff())
    for name, value in (("logp_new", -3.0), ("logp_old", float("nan"))):
        other[name] = arguments[name].masked_fill(silent_N, value)
    one, two = policy_loss(**arguments).stats, policy_loss(**other).stats
    assert torch.equal(one.sums, two.sums)
    assert torch.equal(one.maxima, two.maxima)


@pytest.mark.parametrize("poisoned", ["logp_new", "logp_old", "advantage"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_tokens_are_counted_and_not_hidden(poisoned: str, poison: float) -> None:
    arguments = random_batch(rows=3, length=4, seed=2).packed()
    arguments["advantage"] = torch.ones_like(arguments["logp_new"])
    del arguments["logp_ref"]
    arguments[poisoned] = arguments[poisoned].clone()
    arguments[poisoned][1] = poison
    stats = PolicyLoss("grpo")(**arguments).stats
    m = (stats + PolicyLoss("grpo")(**(arguments | {poisoned: torch.ones_like(arguments[poisoned])})).stats).metrics()
    assert m["nonfinite_tokens"] == 1
    shown = "weight_removed/total" if poisoned == "advantage" else "kl_old_new_k1"
    assert not math.isfinite(m[shown])
    if poisoned != "advantage":
        assert not math.isfinite(m["log_ratio_abs_max"])


def test_adding_other_kl_estimators_is_refused() -> None:
    batch = random_batch()
    one, other = (PolicyLoss("grpo", kl=kl)(**batch.padded()).stats for kl in ("k1", "k3"))
    with pytest.raises(InputError, match="k1 and k3"):
        one + other


def test_one_name_for_each_sum() -> None:
    stats = PolicyLoss("grpo", kl="k1")(**random_batch().padded()).stats
    assert stats.sums.shape == (len(SUMS),)
    assert len(set(SUMS)) == len(SUMS)
    assert stats.sums.dtype == torch.float64
    assert len(Effect) == 6
