"""Atomic writes, and JSON in which NaN and the infinities survive.

Run: pytest tests/checkpoint/test_files.py
"""

import errno
import hashlib
import json
import math
import os

import pytest

from dinghai import files


@pytest.mark.parametrize("call", ["write_all", "fsync_open", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, number):
    path = tmp_path / "config.json"
    files.write_atomically(path, "old")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, call, fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_text_is_utf8_and_the_umask_decides_who_reads(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "定海神针\n")
    assert path.read_bytes() == "定海神针\n".encode()
    (tmp_path / "b.txt").write_text("")
    assert path.stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_the_data_is_on_the_disk_before_the_name_and_then_the_name(tmp_path, monkeypatch):
    order = []
    for name in ("write_all", "fsync_open", "rename", "fsync_folder"):
        real = getattr(files, name)
        monkeypatch.setattr(files, name, lambda *a, real=real, name=name: (order.append(name), real(*a)))
    files.write_atomically(tmp_path / "a", b"1")
    assert order == ["write_all", "fsync_open", "rename", "fsync_folder"]


def test_a_durable_write_never_overwrites(tmp_path):
    files.write_durably(tmp_path / "a", "1")
    with pytest.raises(FileExistsError):
        files.write_durably(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text() == "1"


def test_sha256_of_a_file_larger_than_a_chunk(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 3_000_000)
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(b"a" * 3_000_000).hexdigest()
    (tmp_path / "b").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "b") == expected


def test_non_finite_numbers_survive_as_words():
    record = {"loss": math.nan, "bounds": (math.inf, -math.inf), "deep": [{"x": math.nan}], "n": 0.1, "text": "NaN 定"}
    line = files.json_line(record)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    back = json.loads(line, parse_constant=pytest.fail)
    assert back == {
        "loss": "NaN",
        "bounds": ["Infinity", "-Infinity"],
        "deep": [{"x": "NaN"}],
        "n": 0.1,
        "text": "NaN 定",
    }
    assert math.isnan(float(back["loss"]))
    assert [float(b) for b in back["bounds"]] == [math.inf, -math.inf]
    assert math.isnan(record["loss"])  # the record itself is left alone


@pytest.mark.parametrize(
    "text", ["[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65, "[" * 10_000, "NaN", "-Infinity", ""]
)
def test_json_that_we_did_not_write_is_refused(text):
    with pytest.raises(ValueError, match=r"nested|not JSON|Expecting"):
        files.parse_json(text)


def test_json_of_the_deepest_level_is_read():
    assert files.parse_json("[" * 64 + "]" * 64)
