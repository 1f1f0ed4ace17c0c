"""Only complete steps are read; damage is told and never shown as data; newer versions are refused."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trace_records import Batch, make_batch, make_writer, write_step

from dinghai.errors import InputError, RunFailed
from dinghai.trace import TRACE_VERSION, TraceReader
from dinghai.trace import reader as module
from dinghai.trace.schema import OPTIONAL, TOKEN_SCHEMA

VERSION_1 = Path(__file__).with_name("version-1")  # as the first version wrote it: step 1, two updates, 24 tokens
VERSION_2 = Path(__file__).with_name("version-2")  # the same of the second; update 1 has every optional column


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if files were written long ago: what they hold is remembered."""
    monkeypatch.setattr(module, "_SETTLED_NS", -1)


def test_steps_updates_and_names(trace_folder: Path) -> None:
    reader = TraceReader(trace_folder)
    assert reader.steps() == [1, 2, 3]
    assert reader.incomplete() == {}
    assert reader.updates(2) == [0, 1, 2, 3]
    names = reader.names(2)
    assert names.regions[3] == "OVERSHOOT"
    assert names.effects[4] == "STOPPED"


def test_a_trace_that_is_not_there_has_no_steps(tmp_path: Path) -> None:
    assert TraceReader(tmp_path / "trace").steps() == []


def test_only_what_is_asked_for_is_read(trace_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    read = pq.ParquetFile.read

    def spy(self: pq.ParquetFile, *, columns: list[str] | None) -> object:
        asked.append(columns)
        return read(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", spy)
    table = TraceReader(trace_folder).tokens(2, update=3, columns=["region", "update"])
    assert asked == [["region"]]
    assert table.column_names == ["region", "update"]
    assert set(table["update"].to_pylist()) == {3}


def test_all_updates_come_in_order(trace_folder: Path, batch: Batch) -> None:
    updates = TraceReader(trace_folder).tokens(1)["update"].to_pylist()
    assert updates == [u for u, (_, sample) in enumerate(batch.updates) for _ in sample]


def test_a_trace_of_the_first_version_is_read_and_what_it_did_not_know_is_null() -> None:
    reader = TraceReader(VERSION_1)
    assert reader.steps() == [1]
    table = reader.tokens(1)
    assert table.schema.names == ["update", *TOKEN_SCHEMA.names]
    assert table.num_rows == 24
    assert {name for name in table.schema.names if table[name].null_count} == set(OPTIONAL)
    assert all(table[name].null_count == 24 for name in OPTIONAL)
    assert table.slice(1, 1).to_pydict() == {
        "update": [0], "sample": [0], "position": [1], "token": [2],
        "logp_sampler": [-0.1599578857421875], "logp_old": [-0.15995587408542633], "logp_new": [-0.15995587408542633],
        "advantage": [-0.9999979734420776], "weight": [-1.0], "region": [2], "effect": [1], "entropy": [0.2041015625],
        "log_ratio": [None], "factor": [None], "correction": [None], "kl_weight": [None],
    }  # fmt: skip
    only_new = reader.tokens(1, 0, ["factor", "correction"])
    assert only_new.num_rows == reader.tokens(1, 0, ["sample"]).num_rows
    assert only_new.schema.field("factor").type == TOKEN_SCHEMA.field("factor").type
    assert reader.samples(1).num_rows == 4
    assert reader.names(1).regions[3] == "OVERSHOOT"


def test_in_a_trace_of_the_second_version_every_token_is_scored() -> None:
    reader = TraceReader(VERSION_2)
    assert reader.steps() == [1]
    first, second = (reader.tokens(1, update) for update in (0, 1))
    assert (first.num_rows, second.num_rows) == (23, 18)
    assert {name for name in first.schema.names if first[name].null_count} == set(OPTIONAL)
    assert not any(second[name].null_count for name in second.schema.names)
    assert second.slice(3, 1).to_pydict() == {
        "update": [1], "sample": [1], "position": [3], "token": [64],
        "logp_sampler": [-1.2876014709472656], "logp_old": [-1.287602424621582], "logp_new": [-1.264640212059021],
        "advantage": [0.9999979734420776], "weight": [1.023223876953125], "region": [2], "effect": [1],
        "entropy": [0.1474609375], "log_ratio": [0.011481106281280518], "factor": [0.1111111119389534],
        "correction": [0.0], "kl_weight": [-0.1474609375],
    }  # fmt: skip
    assert reader.samples(1).num_rows == 4


def test_what_is_not_there_is_an_input_error(trace_folder: Path) -> None:
    reader = TraceReader(trace_folder)
    for ask in (
        lambda: reader.tokens(99),
        lambda: reader.tokens(1, update=9),
        lambda: reader.tokens(1, columns=["colour"]),
        lambda: reader.samples(99),
    ):
        with pytest.raises(InputError):
            ask()


def test_a_step_without_its_marker_is_not_shown(trace_folder: Path) -> None:
    (trace_folder / "step-000002/complete.json").unlink()
    reader = TraceReader(trace_folder)
    assert reader.steps() == [1, 3]
    assert "not finished" in reader.incomplete()[2]


def test_a_file_cut_short_anywhere_makes_its_step_incomplete(trace_folder: Path) -> None:
    """Every 4 KiB boundary and the last byte, of each file of a step."""
    for path in sorted((trace_folder / "step-000002").iterdir()):
        whole = path.read_bytes()
        for length in [*range(0, len(whole), 4096), len(whole) - 1]:
            path.write_bytes(whole[:length])
            reader = TraceReader(trace_folder)
            if path.suffix == ".json" and length == len(whole) - 1:
                continue  # only its final newline is gone: still whole
            assert reader.steps() == [1, 3]
            assert reader.incomplete().keys() == {2}
        path.write_bytes(whole)
    assert TraceReader(trace_folder).steps() == [1, 2, 3]


def test_damage_under_a_readers_eyes_is_never_shown_as_data(trace_folder: Path, settled: None) -> None:
    """Cut, or zeros in place of data, from each 4 KiB boundary on: as a full disk, a bad copy or a power cut leave it.

    The reader has listed the step and read the file before.
    """
    clock = itertools.count(10**18)  # that of the file system may be too coarse for changes as quick as these

    def change(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        os.utime(path, ns=(0, next(clock)))

    reader = TraceReader(trace_folder)
    assert reader.steps() == [1, 2, 3]
    for path in sorted((trace_folder / "step-000002").glob("update-*")):
        update = int(path.name[7:10])
        whole = path.read_bytes()
        for length in [*range(0, len(whole), 4096), len(whole) - 1]:
            for content in (whole[:length], whole[:length] + bytes(len(whole) - length)):
                change(path, content)
                with pytest.raises(RunFailed, match=f"{path.name} is damaged"):
                    reader.tokens(2, update, ["region"])
                assert reader.steps() == [1, 3]
                assert path.name in reader.incomplete()[2]
                with pytest.raises(InputError, match="cannot be read"):
                    reader.tokens(2)
                change(path, whole)
                assert reader.steps() == [1, 2, 3]
        assert reader.tokens(2, update).num_rows > 0


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"version": 1}', '{"version": "x"}', "[" * 10_000, '{"version": 1, "files": 3}', "\x00"],
)
def test_a_damaged_marker_makes_its_step_incomplete(trace_folder: Path, content: str) -> None:
    (trace_folder / "step-000002/complete.json").write_text(content)
    assert "damaged" in TraceReader(trace_folder).incomplete()[2]


@pytest.mark.parametrize("name", ["../step-000001/update-000.rank0.parquet", "/etc/passwd", "x.parquet"])
def test_a_marker_cannot_name_files_elsewhere(trace_folder: Path, name: str) -> None:
    path = trace_folder / "step-000002/complete.json"
    marker = json.loads(path.read_text())
    marker["files"][name] = {"rows": 1, "bytes": 1}
    path.write_text(json.dumps(marker))
    assert TraceReader(trace_folder).steps() == [1, 3]


def test_a_flipped_byte_anywhere_is_found(trace_folder: Path) -> None:
    path = trace_folder / "step-000002/update-001.rank0.parquet"
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 100):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(RunFailed, match=r"update-001\.rank0\.parquet is damaged"):
            TraceReader(trace_folder).tokens(2, 1)


def test_a_file_of_something_else_is_told_by_name(trace_folder: Path) -> None:
    path = trace_folder / "step-000002/update-001.rank0.parquet"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(RunFailed, match=r"update-001\.rank0\.parquet is damaged"):
        TraceReader(trace_folder).tokens(2)


def test_a_newer_version_is_refused(trace_folder: Path) -> None:
    path = trace_folder / "step-000002/complete.json"
    path.write_text(path.read_text().replace(f'"version": {TRACE_VERSION}', f'"version": {TRACE_VERSION + 1}'))
    with pytest.raises(InputError, match="upgrade Dinghai"):
        TraceReader(trace_folder).steps()


def test_a_newer_file_is_refused(trace_folder: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinghai.trace.schema.TRACE_VERSION", TRACE_VERSION + 1)
    write_step(make_writer(trace_folder), 4, batch)
    path = trace_folder / "step-000004/complete.json"
    monkeypatch.undo()
    path.write_text(path.read_text().replace(f'"version": {TRACE_VERSION + 1}', f'"version": {TRACE_VERSION}'))
    with pytest.raises(InputError, match=f"trace version {TRACE_VERSION + 1}"):
        TraceReader(trace_folder).tokens(4)


def test_reading_never_writes(trace_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trace_folder.rglob("*")}
    reader = TraceReader(trace_folder)
    for step in reader.steps():
        reader.tokens(step)
        reader.samples(step)
    assert {path: path.stat().st_mtime_ns for path in trace_folder.rglob("*")} == before


def test_what_is_known_and_has_not_changed_is_not_looked_at_again(
    trace_folder: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    for name in ("read_json", "sha256_file"):
        original = getattr(module, name)

        def spy(path: Path, original: Callable[..., object] = original, **more: object) -> object:
            looks.append(path.name)
            return original(path, **more)

        monkeypatch.setattr(module, name, spy)

    reader = TraceReader(trace_folder)
    assert reader.steps() == [1, 2, 3]
    assert looks == [module.schema.MARKER] * 3
    for step in (1, 2):
        reader.tokens(step, 0)
    assert looks[3:] == ["update-000.rank0.parquet"] * 2
    looks.clear()
    reader.steps(), reader.incomplete(), reader.tokens(1, 0), reader.tokens(2, 0, ["advantage"]), reader.names(1)
    assert looks == ["samples.rank0.parquet"]  # where the names are
    TraceReader(trace_folder).tokens(1, 0)
    assert looks[1:] == [module.schema.MARKER]  # another reader of the process


def test_a_file_of_a_moment_ago_is_looked_at_again(trace_folder: Path) -> None:
    """Within the grain of the clock a second change has the same time, and may have the same length."""
    TraceReader(trace_folder).tokens(1, 0)
    assert not any(str(trace_folder) in path for path in module._hashes)


def test_a_step_that_is_written_anew_is_read_anew(trace_folder: Path, settled: None) -> None:
    reader = TraceReader(trace_folder)
    reader.tokens(2)
    other = make_batch(seed=9)
    write_step(make_writer(trace_folder), 2, other)
    assert reader.steps() == [1, 2, 3]
    assert reader.tokens(2, 0)["logp_old"].to_numpy().tolist() == other.updates[0][0]["logp_old"].tolist()


def test_a_step_that_is_being_written_is_not_shown(trace_folder: Path, batch: Batch) -> None:
    reader = TraceReader(trace_folder)
    assert reader.steps() == [1, 2, 3]
    writer = make_writer(trace_folder)
    writer.begin_step(3, batch.samples)
    assert reader.steps() == [1, 2]
    assert "not finished" in reader.incomplete()[3]
    with pytest.raises(InputError, match="not finished"):
        reader.tokens(3)


def test_a_long_listing_is_quick(trace_folder: Path) -> None:
    """2,000 steps take 20 ms once they are known; the bar leaves room for a busy machine."""
    for step in range(4, 2001):
        target = trace_folder / f"step-{step:06d}"
        target.mkdir()
        for path in (trace_folder / "step-000001").iterdir():
            os.link(path, target / path.name)
    reader = TraceReader(trace_folder)
    assert len(reader.steps()) == 2000
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        assert len(reader.steps()) == 2000
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.2
