"""Checkpoints: exact round trips, what is kept and removed, and every kind of damage named and passed over.

Run: pytest tests/checkpoint/test_checkpoint.py
"""

import errno
import json
import os
import random
import shutil
import time

import pytest
import torch

from dinghai.errors import RunFailed
from dinghai.train import manifest
from dinghai.train.checkpoint import has_checkpoint, load_latest_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("fast_disk")


def unexpected(message: str) -> None:
    raise AssertionError(f"reported as damaged: {message}")


def save(folder, contents, *steps, keep=2):
    for step in steps:
        path = save_checkpoint(folder, step, *contents(step), keep=keep)
    return path


def is_step(checkpoint, contents, step) -> bool:
    tensors, state = contents(step)
    return (
        checkpoint.step == step
        and checkpoint.state == state
        and checkpoint.tensors.keys() == tensors.keys()
        and all(torch.equal(t, checkpoint.tensors[g][n]) for g, named in tensors.items() for n, t in named.items())
    )


def names(folder):
    return sorted(os.listdir(folder / "checkpoints"))


# --- round trips -----------------------------------------------------------------------------------------------------

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_dtypes_come_back_bit_for_bit(tmp_path, dtype):
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (64,), generator=generator, dtype=torch.uint8)
    tensor = raw.view(dtype)  # any bits at all, NaN with payload and denormals among them
    save_checkpoint(tmp_path, 1, {"policy": {"x": tensor, "zero_dim": tensor[0], "empty": tensor[:0]}}, {}, keep=1)
    found = load_latest_checkpoint(tmp_path, unexpected).tensors["policy"]
    assert found["x"].dtype == dtype
    assert torch.equal(found["x"].view(torch.uint8), raw)
    assert found["zero_dim"].shape == ()
    assert found["empty"].shape == (0,)


def test_tied_overlapping_and_transposed_tensors(tmp_path):
    weight, memory = torch.randn(3, 4), torch.randn(10)
    tensors = {
        "embedding": weight,
        "head": weight,
        "transposed": weight.t(),
        "flat": weight.view(-1),
        "first": memory[:6],
        "second": memory[4:],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    save_checkpoint(tmp_path, 1, {"policy": tensors}, {}, keep=1)
    found = load_latest_checkpoint(tmp_path, unexpected).tensors["policy"]
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert found["head"] is found["embedding"]
    assert found["first"].data_ptr() != found["second"].data_ptr()


def test_saving_changes_nothing(tmp_path, contents):
    tensors, state = contents(1)
    before = {n: (t, t.clone(), t.data_ptr()) for n, t in tensors["policy"].items()}
    save_checkpoint(tmp_path, 1, tensors, state, keep=1)
    assert (state, list(tensors)) == (contents(1)[1], list(contents(1)[0]))
    for name, (tensor, copy, pointer) in before.items():
        assert tensors["policy"][name] is tensor
        assert torch.equal(tensor, copy)
        assert tensor.data_ptr() == pointer


@pytest.mark.parametrize(
    "state, named",
    [
        ({"best": {"loss": float("nan")}}, r"state\.best\.loss is nan"),
        ({"best": [0.0, float("-inf")]}, r"state\.best\[1\] is -inf"),
        ({"by_step": {3: "x"}}, r"state\.by_step"),
        ({"seen": {1, 2}}, r"state\.seen"),
        ({"tensor": torch.ones(1)}, r"state\.tensor"),
    ],
)
def test_a_state_that_json_would_change_is_refused_by_name(tmp_path, contents, state, named):
    save(tmp_path, contents, 1)
    with pytest.raises(ValueError, match=named):
        save_checkpoint(tmp_path, 2, {}, state, keep=1)
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("group", ["", "../x", "a/b", "Policy", ".hidden"])
def test_a_group_is_one_plain_name(tmp_path, group):
    with pytest.raises(ValueError, match="group of tensors"):
        save_checkpoint(tmp_path, 1, {group: {}}, {}, keep=1)


def test_a_tensor_that_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="complex128"):
        save_checkpoint(tmp_path, 1, {"policy": {"x": torch.zeros(1, dtype=torch.complex128)}}, {}, keep=1)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path, contents):
    save(tmp_path, contents, 10, 20, 30, keep=2)
    assert names(tmp_path) == ["step-000020", "step-000030"]
    save(tmp_path, contents, 40, keep=1)
    assert names(tmp_path) == ["step-000040"]
    assert is_step(load_latest_checkpoint(tmp_path, unexpected), contents, 40)


def test_steps_are_ordered_as_numbers(tmp_path, contents):
    save(tmp_path, contents, 999_999, 1_000_000, keep=2)
    assert load_latest_checkpoint(tmp_path, unexpected).step == 1_000_000


def test_saving_a_step_again_replaces_it(tmp_path, contents):
    save(tmp_path, contents, 1, 2)
    tensors, state = contents(7)
    save_checkpoint(tmp_path, 2, tensors, state, keep=2)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert load_latest_checkpoint(tmp_path, unexpected).state == state


def test_a_later_step_that_the_run_has_not_reached_goes(tmp_path, contents):
    """After a damaged step 30 was passed over, step 20 saved anew must not lose to it at the next resume."""
    save(tmp_path, contents, 10, 30)
    save(tmp_path, contents, 20)
    assert names(tmp_path) == ["step-000010", "step-000020"]


def test_leftovers_are_removed_and_foreign_files_are_not(tmp_path, contents):
    save(tmp_path, contents, 1)
    place = tmp_path / "checkpoints"
    leftover = place / ".step-000002.tmp-0123abcd"
    leftover.mkdir()
    (leftover / "policy.safetensors").write_bytes(b"half")
    (place / "notes.txt").write_text("mine")
    assert is_step(load_latest_checkpoint(tmp_path, unexpected), contents, 1)
    save(tmp_path, contents, 2)
    assert names(tmp_path) == ["notes.txt", "step-000001", "step-000002"]


def test_one_moved_aside_by_a_save_that_died_is_found_and_returned(tmp_path, contents):
    path = save(tmp_path, contents, 5, keep=1)
    path.rename(path.with_name(".step-000005.replaced-0123abcd"))
    assert has_checkpoint(tmp_path)
    assert is_step(load_latest_checkpoint(tmp_path, unexpected), contents, 5)
    save(tmp_path, contents, 6, keep=2)
    assert names(tmp_path) == ["step-000005", "step-000006"]


def test_one_that_cannot_be_removed_is_a_warning_and_never_seen_half_removed(tmp_path, monkeypatch, contents):
    save(tmp_path, contents, 1)

    def half_removed(path, **options):
        (path / "manifest.json").unlink()
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half_removed)
        with pytest.warns(UserWarning, match=r"no longer needed but cannot be removed \(Device or resource busy\)"):
            save(tmp_path, contents, 2, keep=1)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["step-000002"]
    save(tmp_path, contents, 3, keep=1)
    assert names(tmp_path) == ["step-000003"]


def test_files_are_readable_by_whom_the_umask_lets(tmp_path, contents):
    path = save(tmp_path, contents, 1)
    modes = {p.stat().st_mode & 0o777 for p in path.iterdir()}
    (tmp_path / "ordinary").write_text("")
    assert modes == {(tmp_path / "ordinary").stat().st_mode & 0o777}


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path, position, mask):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def refused(folder) -> list[str]:
    """The reports of a run without a usable checkpoint."""
    reports: list[str] = []
    with pytest.raises(RunFailed, match="every checkpoint of the run is damaged"):
        load_latest_checkpoint(folder, reports.append)
    return reports


def test_any_flipped_byte_is_detected_and_its_file_named(tmp_path, contents):
    path = save(tmp_path, contents, 1)
    randomness = random.Random(0)
    files = sorted(path.iterdir())
    assert [f.name for f in files] == ["manifest.json", "optimizer.safetensors", "policy.safetensors", "state.json"]
    places = [(f, randomness.randrange(f.stat().st_size)) for f in randomness.choices(files, k=300)]
    places += [(files[0], n) for n in range(files[0].stat().st_size)]  # the manifest in full: nothing else covers it
    for file, position in places:
        mask = randomness.randrange(1, 256)
        flip(file, position, mask)
        reports = refused(tmp_path)
        assert len(reports) == 1
        assert file.name in reports[0], (file.name, position, mask)
        flip(file, position, mask)
    assert is_step(load_latest_checkpoint(tmp_path, unexpected), contents, 1)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "policy.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "longer", "folder"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, contents, name, damage):
    file = save(tmp_path, contents, 1, 2) / name
    data = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"empty": b"", "half": data[: len(data) // 2], "longer": data + b" "}[damage])
    reports: list[str] = []
    assert is_step(load_latest_checkpoint(tmp_path, reports.append), contents, 1)
    assert len(reports) == 1
    assert "step-000002" in reports[0]
    assert name in reports[0]
    save(tmp_path, contents, 2)  # the run arrives at the damaged step again
    assert is_step(load_latest_checkpoint(tmp_path, unexpected), contents, 2)


def test_a_file_of_another_checkpoint_does_not_pass(tmp_path, contents):
    path = save(tmp_path, contents, 1, 2)
    shutil.copy(path.with_name("step-000001") / "state.json", path / "state.json")
    reports: list[str] = []
    assert load_latest_checkpoint(tmp_path, reports.append).step == 1
    assert len(reports) == 1


def test_a_renamed_checkpoint_does_not_pass(tmp_path, contents):
    path = save(tmp_path, contents, 1)
    path.rename(path.with_name("step-000009"))
    assert "holds step 1" in refused(tmp_path)[0]


def test_without_any_checkpoint_it_says_so(tmp_path):
    for _ in range(2):
        assert not has_checkpoint(tmp_path)
        with pytest.raises(RunFailed, match="holds no complete checkpoint; start the run again"):
            load_latest_checkpoint(tmp_path, unexpected)
        (tmp_path / "checkpoints").mkdir(exist_ok=True)


# --- files that want to hurt -----------------------------------------------------------------------------------------


def forge(path, body) -> None:
    """Gives a checkpoint a manifest that is sealed and canonical, as somebody who means harm would."""
    (path / "manifest.json").write_bytes(manifest._manifest_bytes(body))


def reseal(path) -> None:
    (path / "manifest.json").unlink()
    manifest.write_manifest(path, 1, {"policy": {}, "optimizer": {}})


def test_a_newer_format_is_not_guessed_at(tmp_path, contents):
    path = save(tmp_path, contents, 1)
    body = json.loads((path / "manifest.json").read_text())["manifest"]
    forge(path, body | {"format": 2})
    assert "its format is 2, and this version of Dinghai reads 1" in refused(tmp_path)[0]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"format": 1},
        {"format": 1, "step": 1, "files": {}, "tied": {}},
        {"format": 1, "step": 1, "files": 3, "tied": {"policy": {}}},
        {"format": 1, "step": 1, "files": {"state.json": 3}, "tied": {}},
        {"format": 1, "step": 1, "files": {"state.json": {}}, "tied": 5},
    ],
)
def test_a_forged_manifest_is_damage_and_not_a_crash(tmp_path, contents, body):
    forge(save(tmp_path, contents, 1), body)
    assert "manifest.json" in refused(tmp_path)[0]


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize("kind", ["deep list", "deep table", "two gigabytes", "long number"])
def test_hostile_json_is_refused_at_once(tmp_path, contents, name, kind):
    path = save(tmp_path, contents, 1)
    with (path / name).open("wb") as file:
        if kind == "two gigabytes":
            file.truncate(2 * 1024**3)  # a sparse file: it takes no space here
        text = {"deep list": "[" * 10_000 + "]" * 10_000, "deep table": '{"a":' * 10_000 + "1" + "}" * 10_000}
        file.write(text.get(kind, "1" * 100_000).encode())
    if name == "state.json" and kind != "two gigabytes":
        reseal(path)
    started = time.perf_counter()
    assert name in refused(tmp_path)[0] or "nested" in refused(tmp_path)[0] or "digits" in refused(tmp_path)[0]
    assert time.perf_counter() - started < 1


def test_a_hostile_tensor_file_is_refused(tmp_path, contents):
    path = save(tmp_path, contents, 1)
    (path / "policy.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    reseal(path)
    assert len(refused(tmp_path)) == 1


def test_a_pickle_is_never_opened(tmp_path, contents):
    path = save(tmp_path, contents, 1)
    opened = tmp_path / "opened"
    harm = f"cposix\nsystem\n(S'touch {opened}'\ntR.".encode()
    for name in ("policy.safetensors", "state.json"):
        (path / name).write_bytes(harm)
        reseal(path)
        refused(tmp_path)
    assert not opened.exists()
