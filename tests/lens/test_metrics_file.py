"""metrics.jsonl is read back as it was meant; a torn last line is told, any other damage is an error with its line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dinghai.errors import InputError
from dinghai.files import json_line
from dinghai.lens import TornLine, read_metrics


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "metrics.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rows_come_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, '{"step": 0, "held_out/accuracy": 0.5}\n\n{"step": 1, "entropy": 2}\n')
    assert read_metrics(path) == [{"step": 0, "held_out/accuracy": 0.5}, {"step": 1, "entropy": 2}]


def test_non_finite_numbers_come_back_wherever_they_stand(tmp_path: Path) -> None:
    row = {"step": 1, "a": math.nan, "by_update": [{"b": math.inf, "c": [-math.inf, "text"]}]}
    (read,) = read_metrics(write(tmp_path, json_line(row)))
    assert math.isnan(read["a"])
    assert read["by_update"] == [{"b": math.inf, "c": [-math.inf, "text"]}]


def test_a_line_torn_anywhere_is_left_out_with_a_warning(tmp_path: Path) -> None:
    whole, last = '{"step": 1}\n', '{"step": 2, "entropy": 0.5}'
    for length in range(1, len(last)):
        path = write(tmp_path, whole + last[:length])
        with pytest.warns(TornLine, match=r"metrics\.jsonl"):
            assert read_metrics(path) == [{"step": 1}]
    assert len(read_metrics(write(tmp_path, whole + last))) == 2


def test_a_character_torn_in_two_is_no_crash(tmp_path: Path) -> None:
    with pytest.warns(TornLine):
        assert read_metrics(write(tmp_path, '{"step": 1}\n{"step": 2, "é'.encode()[:-1])) == [{"step": 1}]


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"step": "1"}', '{"step": NaN}', "[" * 9_999, "\x00", "null"])
def test_damage_elsewhere_names_the_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2"):
        read_metrics(write(tmp_path, f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'))


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_what_json_line_writes_is_read_back(tmp_path: Path) -> None:
    rows = [{"step": step, "x": step / 3, "t": "a\nb\u2028"} for step in range(50)]
    assert read_metrics(write(tmp_path, "".join(map(json_line, rows)))) == rows
    assert all(json.loads(json_line(row)) == row for row in rows)
