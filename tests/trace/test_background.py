"""A thread of its own writes the same bytes in the same order, hands its errors on, and is waited for where it counts.

Run: pytest tests/trace/test_background.py
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trace_records import Batch, make_batch, make_writer, write_step

from dinghai import files
from dinghai.errors import RunFailed
from dinghai.trace import BackgroundWriter, TraceReader, background


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_bytes_are_those_of_the_writer_itself(tmp_path: Path) -> None:
    with BackgroundWriter(make_writer(tmp_path / "beside", tokens_per_update=2_000)) as beside:
        plain = make_writer(tmp_path / "plain", tokens_per_update=2_000)
        for step in range(1, 6):
            batch = make_batch(seed=step, groups=12)
            write_step(plain, step, batch)
            write_step(beside, step, batch)
    assert everything(tmp_path / "beside") == everything(tmp_path / "plain")


def slow(writer: Any, name: str, seconds: float) -> None:
    original = getattr(writer, name)

    def call(*arguments: Any) -> None:
        time.sleep(seconds)
        original(*arguments)

    setattr(writer, name, call)


def test_the_training_goes_on_while_it_writes_and_waits_when_asked(tmp_path: Path, batch: Batch) -> None:
    writer = make_writer(tmp_path)
    slow(writer, "add_update", 0.1)
    with BackgroundWriter(writer) as trace:
        begun = time.perf_counter()
        write_step(trace, 1, batch)
        assert time.perf_counter() - begun < 0.2
        assert TraceReader(tmp_path).steps() == []
        trace.wait()
        assert time.perf_counter() - begun >= 0.4
        assert TraceReader(tmp_path).steps() == [1]
        trace.wait()  # nothing left to wait for


def test_leaving_waits_for_all_of_it(tmp_path: Path, batch: Batch) -> None:
    writer = make_writer(tmp_path)
    slow(writer, "finish_step", 0.1)
    with BackgroundWriter(writer) as trace:
        write_step(trace, 1, batch)
    assert TraceReader(tmp_path).steps() == [1]


def test_a_slow_disk_holds_the_training_back_rather_than_fill_the_memory(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PARCELS_AT_MOST", 2)
    monkeypatch.setattr(background, "ROWS_TOGETHER", 1)
    writer = make_writer(tmp_path)
    slow(writer, "add_update", 0.05)
    columns, sample = batch.updates[0]
    with BackgroundWriter(writer) as trace:
        begun = time.perf_counter()
        trace.begin_step(1, batch.samples)
        for update in range(8):
            trace.add_update(update, columns, sample)
        assert time.perf_counter() - begun > 0.2  # all but 3 of 8 were done: 2 wait, 1 is at it
        trace.finish_step()
    assert TraceReader(tmp_path).updates(1) == list(range(8))


def test_what_is_small_is_handed_over_at_the_end_of_the_step_and_what_is_large_at_once(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, sample = batch.updates[0]
    for rows, handed_over in ((len(sample) + 1, False), (len(sample), True)):
        monkeypatch.setattr(background, "ROWS_TOGETHER", rows)
        with BackgroundWriter(make_writer(tmp_path / str(rows))) as trace:
            trace.begin_step(1, batch.samples)
            trace.add_update(0, columns, sample)
            trace._parcels.join()
            assert (tmp_path / str(rows)).exists() == handed_over
            trace.finish_step()
        assert TraceReader(tmp_path / str(rows)).steps() == [1]


def full_disk(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    original = files.write_all

    def write_all(file: Any, data: bytes) -> None:
        if where in file.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file, data)

    monkeypatch.setattr(files, "write_all", write_all)


def test_an_error_surfaces_at_the_next_call_and_no_step_after_it_is_written(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, "step-000002/update-001")
    told = r"step-000002/update-001.*free some space"
    trace = BackgroundWriter(make_writer(tmp_path))
    trace.begin_step(1, batch.samples)
    trace.finish_step()
    trace.begin_step(2, batch.samples)
    trace.add_update(1, *batch.updates[0])
    for call in (trace.wait, trace.finish_step, lambda: trace.begin_step(3, batch.samples), trace.wait):
        with pytest.raises(RunFailed, match=told):
            call()
    with pytest.raises(RunFailed, match=told):
        trace.__exit__(None, None, None)
    assert TraceReader(tmp_path).steps() == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def test_an_error_in_the_very_last_call_is_raised_on_leaving(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, "complete.json")
    with pytest.raises(RunFailed, match=r"complete\.json"), BackgroundWriter(make_writer(tmp_path)) as trace:
        write_step(trace, 1, batch)


def training_that_ends_in(error: BaseException, trace: BackgroundWriter, batch: Batch) -> None:
    with trace:
        write_step(trace, 1, batch)
        trace.begin_step(2, batch.samples)
        raise error


def test_it_does_not_hide_what_ended_the_training(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, "complete")
    with pytest.raises(RunFailed, match="the gradient is nan") as caught:
        training_that_ends_in(RunFailed("the gradient is nan"), BackgroundWriter(make_writer(tmp_path)), batch)
    assert "complete.json: No space left" in " ".join(caught.value.__notes__)


def test_a_stopped_training_leaves_its_complete_steps_and_no_other(tmp_path: Path, batch: Batch) -> None:
    with pytest.raises(KeyboardInterrupt):
        training_that_ends_in(KeyboardInterrupt(), BackgroundWriter(make_writer(tmp_path)), batch)
    assert TraceReader(tmp_path).steps() == [1]
    assert "not finished" in TraceReader(tmp_path).incomplete()[2]


def test_errors_of_our_own_making_surface_too(tmp_path: Path, batch: Batch) -> None:
    trace = BackgroundWriter(make_writer(tmp_path))
    trace.finish_step()
    with pytest.raises(ValueError, match="call begin_step first"), trace:
        pass


def test_nothing_to_write_starts_no_thread(tmp_path: Path) -> None:
    with BackgroundWriter(make_writer(tmp_path)) as trace:
        trace.wait()
        assert not [thread for thread in threading.enumerate() if thread.name == "trace"]
