"""A disk that fails at any moment of a save never costs a checkpoint that was complete.

Every call by which a save touches the disk is made to fail in turn, with each of the errors that disks give.
Run: pytest tests/checkpoint/test_save_faults.py
"""

import errno
import os
import resource
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from dinghai import files
from dinghai.train import checkpoint
from dinghai.train.checkpoint import load_latest_checkpoint, save_checkpoint, write_tensors

ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES]
CALLS = [
    (files, "write_all"),
    (files, "fsync_open"),
    (files, "fsync_folder"),
    (files, "rename"),
    (files, "sha256_file"),
]
CALLS += [(checkpoint, "write_tensors")]

pytestmark = pytest.mark.usefixtures("fast_disk")


class FailingDisk:
    """Lets `allowed` calls pass, then fails one, and every later one too if `stays_broken`."""

    def __init__(self, monkeypatch, allowed: int, number: int, stays_broken: bool):
        self.calls, self.allowed, self.number, self.stays_broken = 0, allowed, number, stays_broken
        self.first_failed = ""
        for module, name in CALLS:
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name, real):
        def call(*arguments):
            self.calls += 1
            if self.calls <= self.allowed or (self.calls > self.allowed + 1 and not self.stays_broken):
                return real(*arguments)
            self.first_failed = self.first_failed or name
            if name == "write_all":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if name == "write_tensors":
                arguments[0].write_bytes(b"half a file")
            raise OSError(self.number, os.strerror(self.number), str(arguments[0]))

        return call


def save(folder, contents, step):
    return save_checkpoint(folder, step, *contents(step), keep=1)


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("stays_broken", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("new_step", [2, 1], ids=["next step", "same step"])
def test_a_failing_disk_leaves_a_complete_checkpoint(tmp_path, monkeypatch, contents, number, stays_broken, new_step):
    outcomes, broken = [], []
    for allowed in range(100):
        folder = tmp_path / str(allowed)
        folder.mkdir()
        save(folder, contents, 1)
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            disk = FailingDisk(patch, allowed, number, stays_broken)
            try:
                save(folder, contents, new_step)
                outcomes.append("saved, with a warning" if warned else "saved")
            except OSError as error:
                assert error.errno == number  # noqa: PT017
                outcomes.append("failed")
        found = load_latest_checkpoint(folder, pytest.fail)  # nothing half written is ever seen
        assert found.step in (1, new_step)
        assert torch.equal(found.tensors["policy"]["weight"], contents(found.step)[0]["policy"]["weight"])
        if outcomes[-1] != "failed":
            assert found.step == new_step
        save(folder, contents, 3)  # and the next save succeeds and tidies up
        assert os.listdir(folder / "checkpoints") == ["step-000003"]
        shutil.rmtree(folder)
        broken.append(disk.first_failed)
        if not disk.first_failed:
            break
    assert outcomes[-1] == "saved"
    assert set(broken) == {name for _, name in CALLS} | {""}  # each kind of call has had its turn
    assert outcomes.count("failed") >= 14


def test_a_full_disk_is_given_back_what_was_written(tmp_path, monkeypatch, contents):
    save(tmp_path, contents, 1)
    with monkeypatch.context() as patch:
        FailingDisk(patch, 6, errno.ENOSPC, stays_broken=True)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, contents, 2)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_anything_goes(
    tmp_path, monkeypatch, contents
):
    """A power cut cannot be had in a test; the order of the calls that guard against it can."""
    save(tmp_path, contents, 1)
    calls: list[tuple[str, str]] = []

    def noted(name, real):
        def call(*arguments):
            path = Path(getattr(arguments[0], "name", "")) if name == "fsync_open" else arguments[0]
            calls.append((name, path.name))
            return real(*arguments)

        return call

    for name in ("fsync_open", "fsync_folder", "rename"):
        monkeypatch.setattr(files, name, noted(name, getattr(files, name)))
    path = save(tmp_path, contents, 2)
    into_place, removal = (n for n, (call, _) in enumerate(calls) if call == "rename")
    before = calls[:into_place]
    assert {("fsync_open", file.name) for file in path.iterdir()} <= set(before)
    assert before[-1][0] == "fsync_folder"  # the names in the temporary folder
    assert before[-1][1].startswith(".step-000002.tmp-")
    assert ("fsync_folder", "checkpoints") in calls[into_place:removal]


def test_errors_of_safetensors_keep_their_number(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        write_tensors(tmp_path / "missing" / "x.safetensors", {"x": torch.ones(1)})
    assert caught.value.errno == errno.ENOENT


def test_a_file_that_the_system_refuses_is_an_error_and_not_half_a_file(tmp_path):
    """A real refusal, in the middle of a safetensors file: the system's limit on the size of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "x.safetensors").exists()
