"""What is derived from a trace is what the loss decided: for every rule, ratio level, reduction and rollout correction.

Run: pytest tests/lens/test_tokens.py
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from dinghai.errors import InputError, RunFailed
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.objective import RULES, Effect, PolicyLoss, PolicyLossOutput, Region
from dinghai.objective.correction import CORRECTIONS, build_correction
from dinghai.objective.stats import SUMS
from dinghai.trace import Samples, TraceReader, TraceWriter

ROWS, LENGTH = 40, 24
ROUNDING = 2.0**-16  # relative, of what a trace keeps of a weight and of a correction: 16 significant bits


def padded_batch(spread: float) -> dict[str, Tensor]:
    """Ratios on both sides of most bounds, one advantage in five 0, masks with holes."""
    g = torch.Generator().manual_seed(3)
    logp_old_BT = -3 * torch.rand(ROWS, LENGTH, generator=g) - 1e-3
    logp_new_BT = (logp_old_BT + spread * torch.randn(ROWS, LENGTH, generator=g)).clamp(max=0)
    advantage_B = torch.randn(ROWS, generator=g)
    return {
        "logp_new": logp_new_BT,
        "logp_old": logp_old_BT,
        "logp_sampler": logp_old_BT + 0.3 * torch.randn(ROWS, LENGTH, generator=g),
        "logp_ref": logp_old_BT,
        "advantage": torch.where(torch.rand(ROWS, generator=g) < 0.2, 0.0, advantage_B),
        "mask": torch.rand(ROWS, LENGTH, generator=g) < 0.8,
    }


def decide(rule: str, spread: float = 0.4, **options: Any) -> tuple[PolicyLossOutput, dict[str, np.ndarray]]:
    """What the loss says of the batch, and the columns that a run would record, masked tokens included: [B·T]."""
    batch = padded_batch(spread)
    longest = LENGTH if options.get("reduction", RULES[rule].reduction) == "seq-mean-token-sum-norm" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not meant for this ratio
        policy_loss = PolicyLoss(rule, max_length=longest, **options)
    without = {"logp_ref": policy_loss.kl is None, "logp_sampler": policy_loss.correction is None}
    out = policy_loss(**{name: column for name, column in batch.items() if not without.get(name)})
    decision = out.decision
    columns = {name: batch[name] for name in ("logp_sampler", "logp_old", "logp_new")}
    columns |= {name: getattr(decision, name) for name in ("advantage", "weight", "region", "effect")}
    columns |= {"entropy": torch.zeros(ROWS, LENGTH), "factor": out.factor, "token": torch.zeros(ROWS, LENGTH)}
    columns |= {"position": torch.arange(LENGTH).expand(ROWS, LENGTH)}
    optional = {"correction": decision.correction, "kl_weight": decision.kl_weight}
    optional["log_ratio"] = None if policy_loss.ratio == "token" else decision.log_ratio
    columns |= {name: column for name, column in optional.items() if column is not None}
    return out, {name: column.reshape(-1).numpy() for name, column in columns.items()}


def samples(count: int) -> Samples:
    names = [f"p{i}" for i in range(count)]
    numbers = list(range(count))
    return Samples(numbers, numbers, names, names, names, [1] * count, [True] * count, [0.0] * count)


def record(folder: Path, *updates: dict[str, np.ndarray]) -> TraceReader:
    """A trace whose step 1 has these updates."""
    regions, effects = ({int(member): member.name for member in kind} for kind in (Region, Effect))
    writer = TraceWriter(folder, 10**6, seed=0, regions=regions, effects=effects)
    writer.begin_step(1, samples(ROWS))
    for index, columns in enumerate(updates):
        writer.add_update(index, columns, np.repeat(np.arange(ROWS), len(columns["token"]) // ROWS))
    writer.finish_step()
    return TraceReader(folder)


def check(tokens: Tokens, out: PolicyLossOutput) -> None:
    """Each token, and the sums, against the loss's own record."""
    decision, mask_N = out.decision, out.decision.mask.reshape(-1).numpy()

    def of(column: Tensor) -> np.ndarray:
        return column.reshape(-1).numpy()

    assert np.array_equal(tokens.log_ratio[mask_N], of(decision.log_ratio)[mask_N])
    np.testing.assert_allclose(tokens.ratio[mask_N], of(decision.ratio)[mask_N], rtol=1e-6)
    np.testing.assert_allclose(tokens.weight_unclipped, of(decision.weight_unclipped), rtol=1e-6 + ROUNDING)
    sums = dict(zip(SUMS, out.stats.sums.tolist(), strict=True))
    whole = sum(sums[f"gradient/{name}"] for name in REGIONS)
    for index, name in enumerate(REGIONS):
        here = tokens.region == index
        gradient, removed = (x_N[here].sum(dtype=np.float64) for x_N in (tokens.gradient, tokens.removed))
        assert gradient == pytest.approx(sums[f"gradient/{name}"], rel=1e-5, abs=1e-6), name
        assert removed == pytest.approx(sums[f"gradient_removed/{name}"], rel=1e-5, abs=ROUNDING * whole), name
    untouched = np.isin(tokens.effect, [EFFECTS.index("kept"), EFFECTS.index("amplified")])
    assert (tokens.removed[untouched] == 0).all()
    metrics = out.stats.metrics()
    signal = np.count_nonzero(tokens.signal)
    assert signal == metrics["signal_tokens"]
    assert np.count_nonzero(tokens.stopped) == round(metrics["stopped_fraction"] * signal)
    assert np.count_nonzero(tokens.outside) == round(metrics["band_fraction"] * signal)
    assert np.count_nonzero(tokens.region == REGIONS.index("masked")) == np.count_nonzero(~mask_N) > 0


@pytest.mark.parametrize("rule, level", [(name, level) for name, rule in RULES.items() for level in rule.ratio_levels])
def test_every_rule_at_every_level(tmp_path: Path, rule: str, level: str) -> None:
    out, columns = decide(rule, ratio=level)
    check(read_tokens(record(tmp_path, columns), 1), out)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_rollout_correction(tmp_path: Path, name: str) -> None:
    """Those that drop tokens take w0 away from them without their factor, which is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, columns = decide("grpo", correction=build_correction(name))
    check(read_tokens(record(tmp_path, columns), 1), out)


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm", "token-sum"])
def test_reductions_and_a_penalty(tmp_path: Path, reduction: str) -> None:
    out, columns = decide("grpo", reduction=reduction, kl="k3", beta=0.05)
    tokens = read_tokens(record(tmp_path, columns), 1)
    check(tokens, out)
    assert tokens.kl_weight is not None
    np.testing.assert_allclose(tokens.kl_weight, out.decision.kl_weight.reshape(-1), rtol=2.0**-8)


def test_updates_come_together_in_order(tmp_path: Path) -> None:
    pairs = [decide("grpo", spread=spread) for spread in (0.0, 0.2, 0.6)]
    reader = record(tmp_path, *(columns for _, columns in pairs))
    together = read_tokens(reader, 1)
    for update, (out, _) in enumerate(pairs):
        check(read_tokens(reader, 1, update), out)
        check(together.rows(together.update == update), out)
    assert len(together) == 3 * ROWS * LENGTH


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, columns = decide("grpo")
    reader = record(tmp_path, columns)
    asked: list[Any] = []
    read = TraceReader.tokens
    monkeypatch.setattr(TraceReader, "tokens", lambda self, *a: (asked.append(a[2]), read(self, *a))[1])
    tokens = read_tokens(reader, 1, 0, ["position", "outside", "ratio"])
    assert asked == [["position", "logp_old", "logp_new", "advantage", "region", "log_ratio"]]
    assert np.array_equal(tokens.ratio, read_tokens(reader, 1).ratio)
    with pytest.raises(KeyError, match="'weight' was not read"):
        _ = tokens.removed
    with pytest.raises(InputError, match="no column 'colour'"):
        read_tokens(reader, 1, 0, ["colour"])


@pytest.mark.parametrize("name", ["sample", "ratio", "weight_unclipped", "gradient", "removed", "signal", "outside"])
def test_a_name_alone_brings_all_that_it_needs(tmp_path: Path, name: str) -> None:
    _, columns = decide("grpo", correction=build_correction("tis"))
    reader = record(tmp_path, columns)
    assert np.array_equal(getattr(read_tokens(reader, 1, 0, [name]), name), getattr(read_tokens(reader, 1), name))


def test_a_trace_that_knows_no_factor_weighs_all_tokens_alike(tmp_path: Path) -> None:
    _, columns = decide("grpo", reduction="token-mean")
    del columns["factor"]
    tokens = read_tokens(record(tmp_path, columns), 1)
    assert (tokens.factor == 1).all()
    assert tokens.correction is None
    assert tokens.kl_weight is None


def test_what_is_not_finite_stays_so(tmp_path: Path) -> None:
    _, columns = decide("grpo")
    shown = np.flatnonzero((columns["region"] == Region.INSIDE) & (columns["logp_new"] < -0.01))
    nan, overflow, gone, weightless = shown[:4]
    columns["logp_new"][nan] = np.nan
    columns["logp_old"][overflow] = -300
    columns["logp_new"][gone] = columns["logp_old"][gone] = -np.inf
    columns["weight"][weightless] = np.nan
    tokens = read_tokens(record(tmp_path, columns), 1)
    assert np.isnan(tokens.gradient[nan])
    assert np.isinf(tokens.ratio[overflow])
    assert np.isnan(tokens.ratio[gone])
    assert np.isnan(tokens.removed[weightless])
    assert np.isfinite(np.delete(tokens.removed, [nan, overflow, gone, weightless])).all()


def test_no_advantage_is_no_gradient_even_where_the_ratio_overflows(tmp_path: Path) -> None:
    _, columns = decide("grpo")
    here = np.flatnonzero(columns["region"] == Region.NO_SIGNAL)[0]
    columns["logp_old"][here] = -300
    tokens = read_tokens(record(tmp_path, columns), 1)
    assert (tokens.weight_unclipped[here], tokens.gradient[here], tokens.removed[here]) == (0, 0, 0)


def without_passes(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns as a run records them that never reads samples without a signal."""
    scored = (columns["advantage"].reshape(ROWS, LENGTH) != 0).any(axis=1).repeat(LENGTH)
    given = {name: values.copy() for name, values in columns.items()}
    for name in ("logp_old", "logp_new", "entropy", "log_ratio", "correction"):
        if name in given:
            given[name][~scored] = np.nan
    return given | {"scored": scored}


@pytest.mark.parametrize(
    "options", [{}, {"ratio": "sequence-token"}, {"correction": build_correction("tis")}], ids=["grpo", "gspo", "tis"]
)
def test_never_scoring_samples_without_a_signal_changes_no_sum(tmp_path: Path, options: dict[str, Any]) -> None:
    out, columns = decide("grpo", **options)
    given = without_passes(columns)
    whole, tokens = (read_tokens(record(tmp_path / str(i), one), 1) for i, one in enumerate((columns, given)))
    unscored = ~given["scored"]
    assert np.array_equal(tokens.scored, ~unscored)
    assert whole.scored.all()
    assert 0 < unscored.sum() < len(tokens)
    check(whole, out)
    for name in ("weight_unclipped", "gradient", "removed", "weight"):
        assert (getattr(tokens, name)[unscored] == 0).all(), name
    for name in ("weight_unclipped", "gradient", "removed", "signal", "stopped", "outside", "region", "effect"):
        assert np.array_equal(getattr(tokens, name), getattr(whole, name)), name
    for name in ("logp_old", "logp_new", "log_ratio", "ratio", "entropy"):
        found = getattr(tokens, name)
        assert np.isnan(found[unscored]).all(), name
        assert np.array_equal(found[~unscored], getattr(whole, name)[~unscored]), name
    assert np.isfinite(tokens.logp_sampler).all()


def test_an_update_in_which_nothing_was_scored_is_read(tmp_path: Path) -> None:
    _, columns = decide("grpo", ratio="sequence")
    nothing = without_passes(columns) | {"scored": np.zeros(ROWS * LENGTH, dtype=bool)}
    for name in ("advantage", "weight"):
        nothing[name] = np.zeros_like(columns[name])
    nothing["region"] = np.full_like(columns["region"], Region.NO_SIGNAL)
    reader = record(tmp_path, columns, nothing)
    tokens = read_tokens(reader, 1, 1)
    assert not tokens.scored.any()
    assert np.isnan(tokens.log_ratio).all()
    assert (tokens.removed == 0).all()
    assert read_tokens(reader, 1).scored.sum() == ROWS * LENGTH


def test_a_sick_token_is_not_taken_for_one_that_was_never_scored(tmp_path: Path) -> None:
    _, columns = decide("grpo")
    sick = np.flatnonzero(columns["region"] == Region.INSIDE)[0]
    columns["logp_new"][sick] = columns["logp_old"][sick] = columns["entropy"][sick] = np.nan
    tokens = read_tokens(record(tmp_path, without_passes(columns)), 1)
    assert tokens.scored[sick]
    assert np.isnan(tokens.gradient[sick])


@pytest.mark.parametrize("name", ["region", "effect"])
def test_a_number_without_a_name_is_told(tmp_path: Path, name: str) -> None:
    _, columns = decide("grpo")
    columns[name][5] = 77
    with pytest.raises(RunFailed, match=f"a {name} of step 1 that this Dinghai does not know: number 77"):
        read_tokens(record(tmp_path, columns), 1)


def test_a_column_with_gaps_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, columns = decide("grpo")
    reader = record(tmp_path, columns)
    table = reader.tokens(1)
    where = table.column_names.index("advantage")
    gaps = pa.array([None, *table["advantage"].to_pylist()[1:]], pa.float32())
    broken = table.set_column(where, "advantage", gaps)
    monkeypatch.setattr(TraceReader, "tokens", lambda *a: broken)
    with pytest.raises(RunFailed, match="its column advantage has gaps"):
        read_tokens(reader, 1)


def test_gaps_that_no_skipped_sample_leaves_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, columns = decide("grpo")
    reader = record(tmp_path, without_passes(columns))
    table = reader.tokens(1)
    where = table.column_names.index("entropy")
    broken = table.set_column(where, "entropy", pa.array(columns["entropy"]))
    monkeypatch.setattr(TraceReader, "tokens", lambda *a: broken)
    with pytest.raises(RunFailed, match="its column entropy has gaps"):
        read_tokens(reader, 1)
    monkeypatch.undo()
    columns = without_passes(columns) | {"region": np.full_like(columns["region"], Region.INSIDE)}
    with pytest.raises(RunFailed, match="tokens with a signal that were never scored"):
        read_tokens(record(tmp_path / "other", columns), 1)
