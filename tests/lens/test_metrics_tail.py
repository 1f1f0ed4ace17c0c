"""The metrics of a growing run: the same rows as a reading of the whole file gives, and only what is new is parsed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dinghai.errors import InputError
from dinghai.files import json_line
from dinghai.lens import metrics_tail
from dinghai.lens.metrics_file import load_metrics
from dinghai.lens.metrics_tail import SETTLED_SECONDS, MetricsTail, Packer


def row(step: int, **more: Any) -> dict[str, Any]:
    by_update = [{"update": 0, "kl": 0.5 * step}, {"update": 1, "kl": float("inf")}]
    return {"step": step, "reward": step / 7, "left_early": step % 2 == 0, "by_update": by_update, **more}


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def write(path: Path, rows: list[dict[str, Any]], mode: str = "w") -> None:
    with path.open(mode) as file:
        file.writelines(json_line(one) for one in rows)


def settle(path: Path) -> None:
    """As if the file had not been written to for a while."""
    then = path.stat().st_mtime - SETTLED_SECONDS - 1
    os.utime(path, (then, then))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_every_reading_has_the_rows_that_the_whole_file_has(path: Path) -> None:
    tail = MetricsTail(path)
    for step in range(1, 30):
        write(path, [row(step, **({"held_out/accuracy": 0.5} if step % 4 == 0 else {}))], "a")
        assert plain(tail.read().rows) == load_metrics(path).rows


def test_a_packed_row_is_the_dict_that_it_was() -> None:
    values = {
        "step": 3,
        "x": 0.1,
        "yes": True,
        "none": None,
        "text": "a",
        "huge": 2**60,
        "list": [1, {"y": 2}],
        "nan": 1e300,
    }
    packed = Packer().pack(values)
    assert plain(packed) == values
    assert [type(packed[key]) for key in values][:3] == [int, float, bool]
    assert list(packed) == list(values)
    assert len(packed) == len(values)
    assert packed.get("absent", 7) == 7
    assert "absent" not in packed
    with pytest.raises(KeyError):
        packed["absent"]


def test_what_was_read_is_not_parsed_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = metrics_tail.parse_line
    monkeypatch.setattr(metrics_tail, "parse_line", lambda line, *more: parsed.append(line) or real(line, *more))
    tail = MetricsTail(path)
    write(path, [row(step) for step in range(1, 2_001)])
    tail.read()
    write(path, [row(2_001)], "a")
    parsed.clear()
    assert len(tail.read().rows) == 2_001
    assert len(parsed) == 1
    tail.read()
    assert len(parsed) == 1


def test_a_long_file_is_read_in_pieces_that_lines_lie_across(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_tail, "_CHUNK", 100)
    monkeypatch.setattr(metrics_tail, "_REMEMBERED", 50)
    tail = MetricsTail(path)
    write(path, [row(step) for step in range(1, 50)])
    assert plain(tail.read().rows) == load_metrics(path).rows
    write(path, [row(50)], "a")
    assert plain(tail.read().rows) == load_metrics(path).rows


def test_a_line_that_is_being_written_is_waited_for(path: Path) -> None:
    tail = MetricsTail(path)
    line = json_line(row(2))
    write(path, [row(1)])
    with path.open("a") as file:
        file.write(line[:40])
    metrics = tail.read()
    assert [one["step"] for one in metrics.rows] == [1]
    assert metrics.notes == []
    with path.open("a") as file:
        file.write(line[40:])
    assert plain(tail.read().rows) == [row(1), row(2)]


def test_a_line_that_was_torn_is_said_once_the_file_rests(path: Path) -> None:
    tail = MetricsTail(path)
    write(path, [row(1)])
    with path.open("a") as file:
        file.write('{"step": 2, "rew')
    settle(path)
    metrics = tail.read()
    assert [one["step"] for one in metrics.rows] == [1]
    assert "not written to its end" in metrics.notes[0]
    assert tail.read().notes == metrics.notes


@pytest.mark.parametrize("grown", [0, 1, 30])
def test_a_file_that_was_cut_back_is_read_anew(path: Path, grown: int) -> None:
    """A resumed run cuts its metrics back; by the next look they may be longer than before."""
    tail = MetricsTail(path)
    write(path, [row(step, seconds=1.0) for step in range(1, 20)])
    tail.read()
    write(path, [row(step, seconds=1.0) for step in range(1, 11)])
    write(path, [row(step, seconds=2.0) for step in range(11, 11 + grown)], "a")
    assert plain(tail.read().rows) == load_metrics(path).rows


def test_a_run_without_metrics_and_one_whose_metrics_are_removed(path: Path) -> None:
    tail = MetricsTail(path)
    assert tail.read().rows == []
    assert "no step" in tail.read().notes[0]
    write(path, [row(1)])
    assert len(tail.read().rows) == 1
    path.unlink()
    assert tail.read().rows == []


def test_a_damaged_line_is_named_at_every_reading_until_it_is_mended(path: Path) -> None:
    tail = MetricsTail(path)
    write(path, [row(1)])
    with path.open("a") as file:
        file.write('{"step": 2\n' + json_line(row(3)))
    for _ in range(2):
        with pytest.raises(InputError, match="line 2 is not JSON"):
            tail.read()
    write(path, [row(4), row(5)])
    assert [one["step"] for one in tail.read().rows] == [4, 5]


def test_what_is_no_file_of_lines_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(path)  # opened, it would wait for somebody to write
    with pytest.raises(InputError, match="regular"):
        MetricsTail(path).read()
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="regular"):
        MetricsTail(path).read()
    shutil.rmtree(path)
    monkeypatch.setattr(metrics_tail, "LONGEST_LINE", 1_000)
    path.write_bytes(b"x" * 2_000)
    with pytest.raises(InputError, match="longer"):
        MetricsTail(path).read()


def test_a_long_run_takes_little_memory(path: Path) -> None:
    """Fifty thousand numbers as objects of Python would take some 4 MB."""
    import tracemalloc

    numbers = {f"clip/region/number-{n}": n / 3 for n in range(100)}
    write(path, [row(step, **numbers) for step in range(1, 501)])
    tail = MetricsTail(path)
    tracemalloc.start()
    try:
        tail.read()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1_000_000
