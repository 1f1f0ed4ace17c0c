"""The trace is the same bytes for the same inputs, keeps whole groups, stays small and fails in words."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trace_records import Batch, make_batch, make_writer, write_step

from dinghai import files
from dinghai.errors import RunFailed
from dinghai.trace import Samples, TraceReader, discard_steps_from, schema, writer
from dinghai.trace.writer import choose_groups, round_to_bits, round_to_fraction


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, batch: Batch) -> None:
    for name in ("first", "second"):
        write_step(make_writer(tmp_path / name, tokens_per_update=2_000), 7, batch)
    first = files_of(tmp_path / "first")
    assert first == files_of(tmp_path / "second")
    assert sorted(first) == [
        "step-000007/complete.json",
        "step-000007/samples.rank0.parquet",
        *(f"step-000007/update-00{update}.rank0.parquet" for update in range(4)),
    ]


def test_a_step_written_again_leaves_nothing_of_the_first(tmp_path: Path, batch: Batch) -> None:
    trace = make_writer(tmp_path)
    write_step(trace, 1, batch)
    trace.begin_step(1, batch.samples)
    assert TraceReader(tmp_path).steps() == []
    columns, sample = batch.updates[0]
    trace.add_update(0, columns, sample)
    trace.finish_step()
    assert TraceReader(tmp_path).updates(1) == [0]


def test_torch_tensors_and_arrays_are_the_same_record(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[1]
    for name, convert in (("numpy", np.asarray), ("torch", torch.as_tensor)):
        trace = make_writer(tmp_path / name)
        trace.begin_step(1, batch.samples)
        trace.add_update(0, {key: convert(values) for key, values in columns.items()}, convert(sample))
        trace.finish_step()
    assert files_of(tmp_path / "numpy") == files_of(tmp_path / "torch")


def test_bfloat16_tensors_that_need_a_gradient_are_accepted(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[0]
    as_torch = {key: torch.as_tensor(values) for key, values in columns.items()}
    as_torch["logp_new"] = as_torch["logp_new"].to(torch.bfloat16).requires_grad_()
    trace = make_writer(tmp_path)
    trace.begin_step(1, batch.samples)
    trace.add_update(0, as_torch, sample)
    trace.finish_step()
    stored = TraceReader(tmp_path).tokens(1, columns=["logp_new"])["logp_new"].to_numpy()
    assert np.array_equal(stored, as_torch["logp_new"].detach().float().numpy())


def test_the_budget_keeps_whole_groups_and_never_more_tokens(tmp_path: Path, batch: Batch) -> None:
    budget = 1_500
    write_step(make_writer(tmp_path, tokens_per_update=budget), 1, batch)
    reader = TraceReader(tmp_path)
    samples = reader.samples(1)
    groups = samples["group"].to_pylist()
    assert all(groups.count(group) == 8 for group in groups)
    assert sum(samples["tokens"].to_pylist()) <= budget
    assert set(reader.tokens(1, columns=["sample"])["sample"].to_pylist()) == set(samples["sample"].to_pylist())
    marker = reader.marker(1)
    assert marker.tokens_total == sum(batch.samples.tokens)
    assert marker.tokens_recorded == sum(samples["tokens"].to_pylist())
    assert (marker.groups_total, marker.groups_recorded) == (32, len(set(groups)))


def test_the_choice_of_groups_depends_on_seed_and_step_alone() -> None:
    group, tokens = [i // 4 for i in range(400)], [10] * 400
    first = choose_groups(group, tokens, 800, seed=0, step=1)
    assert len(first) == 20
    assert first == choose_groups(group[::-1], tokens, 800, seed=0, step=1)
    assert first != choose_groups(group, tokens, 800, seed=0, step=2)
    assert first != choose_groups(group, tokens, 800, seed=1, step=1)


def test_every_group_is_as_likely_as_any_other() -> None:
    group, tokens = list(range(10)), [100] * 10
    counts = np.zeros(10)
    for step in range(2_000):
        counts[list(choose_groups(group, tokens, 300, seed=0, step=step))] += 1
    # 600 expected each, standard deviation 20.5: six of them either way.
    assert counts.sum() == 6_000
    assert np.all(np.abs(counts - 600) < 123)


def test_one_group_longer_than_the_budget_is_still_kept() -> None:
    assert len(choose_groups([0, 0, 1, 1], [500] * 4, 10, seed=0, step=1)) == 1


def test_a_token_costs_at_most_16_bytes(tmp_path: Path, batch: Batch) -> None:
    write_step(make_writer(tmp_path), 1, make_batch(seed=3, length=80))
    size = sum(len(content) for name, content in files_of(tmp_path).items() if "update" in name)
    assert size / TraceReader(tmp_path).tokens(1, columns=["sample"]).num_rows <= 16


@pytest.mark.parametrize("bits", [8, 16])
def test_rounding_keeps_zero_sign_and_the_non_finite(bits: int) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.lognormal(0, 8, 10_000), -random.lognormal(0, 8, 10_000)]).astype(np.float32)
    rounded = round_to_bits(values, bits)
    assert np.max(np.abs(rounded / values - 1)) <= 2.0**-bits
    special = np.array([0.0, np.nan, np.inf, -np.inf, 1.0, -2.0], dtype=np.float32)
    assert np.array_equal(round_to_bits(special, bits), special, equal_nan=True)


def test_sampler_log_probs_keep_two_millionths_of_a_nat() -> None:
    random = np.random.default_rng(0)
    values = (-random.gamma(0.4, 4.0, 10_000)).astype(np.float32)
    assert np.max(np.abs(round_to_fraction(values, 18).astype(float) - values)) <= 2.0**-19
    special = np.array([0.0, np.nan, np.inf, -np.inf, -1.0, -1e30], dtype=np.float32)
    assert np.array_equal(round_to_fraction(special, 18), special, equal_nan=True)


def test_rounding_goes_to_even() -> None:
    # 8 significant bits of a number in [1, 2) are steps of 1/128; a half is 1/256.
    values = np.array([1 + 1 / 256, 1 + 3 / 256, 1 + 1.1 / 256], dtype=np.float32)
    assert round_to_bits(values, 8).tolist() == [1.0, 1 + 2 / 128, 1 + 1 / 128]


def test_what_the_clip_decided_on_is_kept_to_the_last_bit(tmp_path: Path, batch: Batch) -> None:
    write_step(make_writer(tmp_path), 1, batch)
    for update, (columns, _) in enumerate(batch.updates):
        stored = TraceReader(tmp_path).tokens(1, update)
        for name in ("logp_old", "logp_new", "advantage", "region", "effect", "token", "position"):
            assert np.array_equal(stored[name].to_numpy(), columns[name]), name
        assert np.array_equal(stored["weight"].to_numpy() == 0, columns["weight"] == 0)


def test_optional_columns_come_back_and_are_null_where_none_were_given(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[1]
    extra = {
        "log_ratio": np.float32(0.001) * sample,
        "factor": 1 / np.bincount(sample)[sample],
        "correction": np.where(sample % 3, np.exp(-columns["logp_old"] / 4), 0),
        "kl_weight": -columns["entropy"],
    }
    assert set(extra) == set(schema.OPTIONAL)
    trace = make_writer(tmp_path)
    trace.begin_step(1, batch.samples)
    trace.add_update(0, columns, sample)
    trace.add_update(1, columns | extra, sample)
    trace.finish_step()
    without, table = (TraceReader(tmp_path).tokens(1, update) for update in (0, 1))
    for name, values in extra.items():
        assert without[name].null_count == len(sample)
        assert table[name].null_count == 0
        stored, exact = table[name].to_numpy(), values.astype(np.float32)
        assert np.array_equal(stored == 0, exact == 0)
        assert np.allclose(stored, exact, rtol=2.0 ** -schema.SIGNIFICANT_BITS.get(name, 24), atol=0)


def test_a_column_that_is_not_given_or_has_one_value_a_sequence_costs_next_to_nothing(tmp_path: Path) -> None:
    columns, sample = make_batch(seed=3, length=80).updates[1]
    extra = {"log_ratio": np.sin(sample).astype(np.float32), "factor": 1 / np.bincount(sample)[sample]}
    trace = make_writer(tmp_path)
    trace.begin_step(1, make_batch(seed=3, length=80).samples)
    trace.add_update(0, columns | extra, sample)
    group = pq.read_metadata(tmp_path / "step-000001/update-000.rank0.parquet").row_group(0)
    found = [group.column(i) for i in range(group.num_columns)]
    size = {column.path_in_schema: column.total_compressed_size for column in found}
    assert size.keys().isdisjoint({"correction", "kl_weight"})
    assert size["log_ratio"] / len(sample) < 0.2
    assert size["factor"] / len(sample) < 0.2


def test_a_token_that_was_never_scored_is_null_and_a_sick_one_stays_what_it_is(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[1]
    unscored = sample // 8 % 3 == 0  # whole groups
    sick = np.flatnonzero(~unscored)[0]
    optional = dict.fromkeys(("log_ratio", "correction"), columns["entropy"])
    given = {name: values.copy() for name, values in (columns | optional).items()}
    given["weight"][unscored] = 0
    for name in ("logp_old", "logp_new", "entropy", "log_ratio"):
        given[name][unscored] = np.nan
        given[name][sick] = np.nan
    for folder, budget in (("all", 100_000), ("some", 1_500)):
        trace = make_writer(tmp_path / folder, tokens_per_update=budget)
        trace.begin_step(1, batch.samples)
        trace.add_update(0, given | {"scored": ~unscored}, sample)
        trace.finish_step()
        stored = TraceReader(tmp_path / folder).tokens(1)
        kept = np.isin(sample, stored["sample"].to_numpy())
        assert kept.all() == (folder == "all")
        for name in schema.TOKEN_SCHEMA.names:
            if name in schema.OPTIONAL and name not in optional:
                continue
            null = stored[name].is_null().to_numpy()
            assert np.array_equal(null, unscored[kept] if name in schema.OF_SCORED else np.zeros_like(null)), name
    assert np.isnan(TraceReader(tmp_path / "all").tokens(1, columns=["logp_new"])["logp_new"][sick].as_py())


def test_that_all_were_scored_need_not_be_said_and_costs_nothing(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[0]
    for name, more in (("silent", {}), ("told", {"scored": np.ones(len(sample), dtype=bool)})):
        trace = make_writer(tmp_path / name)
        trace.begin_step(1, batch.samples)
        trace.add_update(0, columns | more, sample)
        trace.finish_step()
    assert files_of(tmp_path / "silent") == files_of(tmp_path / "told")


def test_what_moves_the_policy_must_have_been_scored(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[0]
    trace = make_writer(tmp_path)
    trace.begin_step(1, batch.samples)
    with pytest.raises(ValueError, match="never scored has a weight other than 0"):
        trace.add_update(0, columns | {"scored": np.zeros(len(sample), dtype=bool)}, sample)
    with pytest.raises(ValueError, match="scored has shape"):
        trace.add_update(0, columns | {"scored": columns["advantage"][1:] != 0}, sample)


def test_non_finite_numbers_survive(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[0]
    special = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)
    trace = make_writer(tmp_path)
    trace.begin_step(1, batch.samples)
    rows = {name: values[:3] for name, values in columns.items()}
    trace.add_update(0, rows | {"logp_new": special, "weight": special, "entropy": special}, sample[:3])
    trace.finish_step()
    stored = TraceReader(tmp_path).tokens(1)
    for name in ("logp_new", "weight", "entropy"):
        assert np.array_equal(stored[name].to_numpy(), special, equal_nan=True)
        assert stored[name].null_count == 0


def test_two_ranks_make_one_step(tmp_path: Path, batch: Batch) -> None:
    writers = [make_writer(tmp_path, rank=rank) for rank in (0, 1)]
    half = len(batch.samples.sample) // 2
    columns, sample = batch.updates[0]
    parts = []
    for rank, ids in enumerate((slice(0, half), slice(half, None))):
        names = ("sample", "group", "prompt_id", "prompt", "completion", "tokens", "finished", "reward")
        parts.append(Samples(**{name: getattr(batch.samples, name)[ids] for name in names}))
        writers[rank].begin_step(1, parts[rank])
    for rank, trace in enumerate(writers):
        mine = (sample < half) == (rank == 0)
        trace.add_update(0, {name: values[mine] for name, values in columns.items()}, sample[mine])
    for trace in reversed(writers):
        trace.finish_step()
    reader = TraceReader(tmp_path)
    assert reader.samples(1)["sample"].to_pylist() == batch.samples.sample
    assert sorted(reader.tokens(1)["sample"].to_pylist()) == sorted(sample.tolist())


def test_lone_surrogates_are_kept_as_visible_escapes(tmp_path: Path) -> None:
    samples = Samples([0], [0], ["p"], ["\udc80?"], ["a\ud800b"], [2], [True], [1.0])
    trace = make_writer(tmp_path)
    trace.begin_step(1, samples)
    trace.finish_step()
    assert TraceReader(tmp_path).samples(1)["completion"].to_pylist() == ["a\\ud800b"]


def test_discarding_steps_removes_the_later_ones_only(trace_folder: Path) -> None:
    (trace_folder / "step-000009").mkdir()
    (trace_folder / "notes.txt").write_text("mine")
    discard_steps_from(trace_folder, 2)
    assert sorted(path.name for path in trace_folder.iterdir()) == ["notes.txt", "step-000001"]
    discard_steps_from(trace_folder / "absent", 2)


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "permissions"), (errno.EIO, "check that disk")],
)
@pytest.mark.parametrize(
    ("call", "where"),
    [
        ("write_all", "update-000.rank0.parquet"),
        ("fsync_open", "samples.rank0.parquet"),
        ("fsync_folder", "step-000001"),
        ("rename", "complete.json"),
    ],
)
def test_a_failing_disk_is_told_with_the_file_and_the_mend(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch, code: int, said: str, call: str, where: str
) -> None:
    trace = make_writer(tmp_path)
    trace.begin_step(1, batch.samples)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, call, fail)

    def finish() -> None:
        trace.add_update(0, *batch.updates[0])
        trace.finish_step()

    with pytest.raises(RunFailed) as caught:
        finish()
    monkeypatch.undo()
    assert f"{where}: {os.strerror(code)}" in str(caught.value)
    assert said in str(caught.value)
    assert not list(tmp_path.rglob("*.tmp*"))
    assert TraceReader(tmp_path).steps() == []


def test_a_step_is_complete_only_when_everything_else_is_on_the_disk(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut may not undo comes before the marker's name, and each file is waited for once."""
    happened: list[str] = []

    def spy(name: str, told: Callable[..., str]) -> None:
        original = getattr(files, name)

        def call(*arguments: Any) -> None:
            happened.append(told(*arguments))
            original(*arguments)

        monkeypatch.setattr(files, name, call)

    spy("fsync_file", lambda path: path.name)
    spy("fsync_folder", lambda path: path.name)
    spy("rename", lambda source, target: f"rename {target.name}")
    write_step(make_writer(tmp_path / "trace"), 1, batch)
    names = ["samples.rank0.parquet", *(f"update-00{update}.rank0.parquet" for update in range(4))]
    assert happened == [*names, "step-000001", "rename complete.json", "step-000001", "trace"]


def test_columns_of_another_length_are_refused(tmp_path: Path, batch: Batch) -> None:
    columns, sample = batch.updates[0]
    trace = make_writer(tmp_path)
    trace.begin_step(1, batch.samples)
    with pytest.raises(ValueError, match="trace column token has shape"):
        trace.add_update(0, columns | {"token": columns["token"][1:]}, sample)


def test_files_hold_no_clock(tmp_path: Path, batch: Batch) -> None:
    write_step(make_writer(tmp_path), 1, batch)
    marker = json.loads((tmp_path / "step-000001/complete.json").read_text())
    assert set(marker) == {"version", "step", "files", "tokens", "groups"}
    metadata = pq.read_metadata(tmp_path / "step-000001/update-000.rank0.parquet").metadata
    assert set(metadata) == {b"dinghai.trace"}


def test_zstd_is_the_compression(tmp_path: Path, batch: Batch) -> None:
    write_step(make_writer(tmp_path), 1, batch)
    group = pq.read_metadata(tmp_path / "step-000001/update-000.rank0.parquet").row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}
    assert writer.ZSTD_LEVEL == 3
