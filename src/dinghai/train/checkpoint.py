"""Checkpoints: complete or absent, checked before use, and free of code.

    RUN/checkpoints/step-000010/
        policy.safetensors, optimizer.safetensors, …   one file for each group of tensors
        state.json                                     everything else that the run needs to continue
        manifest.json                                  size and SHA-256 of each file, and its own

A checkpoint is written under a hidden name, waited for until it is on the disk, and then renamed in one step. Whatever
moment the process dies in, the checkpoints that were complete before stay loadable. Nothing here can execute code:
tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dinghai import files
from dinghai.errors import RunFailed
from dinghai.train.manifest import SUFFIX, Damaged, verified_manifest, write_manifest

FOLDER = "checkpoints"

_STATE = "state.json"
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_COMPLETE = re.compile(r"step-(\d{6,})")
# A checkpoint that another of the same step was about to replace: complete, and needed until that is in place.
_REPLACED = re.compile(r"\.step-(\d{6,})\.replaced-[0-9a-f]{8}")
_UNFINISHED = re.compile(r"\.step-\d{6,}\.tmp-[0-9a-f]{8}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read, every byte checked.

    step:    training steps that were complete when it was written
    tensors: group → name → tensor, on the CPU, with the values, dtypes and ties that were saved
    state:   as saved, with tuples as lists
    path:    its folder
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


# --- saving ----------------------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int
) -> Path:
    """Writes the checkpoint of a step and returns its folder.

    folder:  the run's folder
    step:    training steps completed
    tensors: group (the file's name) → name → tensor, on any device; tied tensors are stored once
    state:   JSON values: text keys, finite numbers; tuples come back as lists
    keep:    how many checkpoints are left, this one included, at least 1; older ones are removed once it is complete

    An earlier checkpoint of the same step is replaced; those of later steps, which this run has not reached, go.
    Raises OSError where the disk refuses (what was complete before then stays) and ValueError for a state or tensor
    that cannot be stored exactly.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the new checkpoint is kept")
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    files.fsync_folder(folder)
    tidy_checkpoints(folder)
    target = place / f"step-{step:06d}"
    temporary = place / f".{target.name}.tmp-{secrets.token_hex(4)}"
    try:
        temporary.mkdir()
        _write_contents(temporary, step, tensors, state)
        _move_into_place(temporary, target)
    except BaseException:
        # Frees the disk, which may be full. What cannot be removed now is removed by the next save.
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _remove_old(place, step, keep)
    return target


def _write_contents(temporary: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    tied: dict[str, dict[str, str]] = {}
    files.write_durably(temporary / _STATE, _state_bytes(state))
    for group, named in tensors.items():
        if not _GROUP_NAME.fullmatch(group):
            raise ValueError(f"a group of tensors is called {group!r}; use lower-case letters, digits, - and _")
        stored, tied[group] = _without_ties(named)
        write_tensors(temporary / (group + SUFFIX), stored)
        shutil.copymode(temporary / _STATE, temporary / (group + SUFFIX))  # safetensors makes files private
        files.fsync_file(temporary / (group + SUFFIX))
    write_manifest(temporary, step, tied)
    files.fsync_folder(temporary)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file. Raises OSError with its number, where safetensors only has words for it."""
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except KeyError as error:
        raise ValueError(f"{path.name}: safetensors cannot store {error.args[0]}") from error


def _move_into_place(temporary: Path, target: Path) -> None:
    if target.exists():
        files.rename(target, target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}"))
    files.rename(temporary, target)
    files.fsync_folder(target.parent)


def _without_ties(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors to store, contiguous and each with memory of its own; name → the stored name it is tied to)."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    used_memory: set[tuple[Any, int]] = set()
    for name, tensor in named.items():
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and same in first:
            tied[name] = first[same]
            continue
        first[same] = name
        memory = (tensor.device, tensor.untyped_storage().data_ptr())
        own = tensor.detach().contiguous()
        stored[name] = (own.clone() if memory in used_memory else own).cpu()
        used_memory.add(memory)
    return stored, tied


def _state_bytes(state: dict[str, Any]) -> bytes:
    _check_state(state, "state", files.DEEPEST_JSON)
    text = json.dumps(state, ensure_ascii=True, allow_nan=False).encode()
    if len(text) > files.LARGEST_JSON:
        raise ValueError(f"the checkpoint's state is {len(text):,} bytes; large things belong among its tensors")
    return text


def _check_state(value: Any, path: str, levels: int) -> None:
    """Refuses what JSON would change on the way: keys that are not text, non-finite numbers, foreign types."""
    if isinstance(value, dict) and levels and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            _check_state(item, f"{path}.{key}", levels - 1)
    elif isinstance(value, list | tuple) and levels:
        for index, item in enumerate(value):
            _check_state(item, f"{path}[{index}]", levels - 1)
    elif not (value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))):
        raise ValueError(f"checkpoint {path} is {value!r:.80}, which JSON cannot keep exactly")


# --- removing --------------------------------------------------------------------------------------------------------


def _remove_old(place: Path, step: int, keep: int) -> None:
    """Leaves the newest checkpoint, which is complete, and `keep - 1` before it."""
    found = [(int(m[1]), p) for p in place.iterdir() if (m := _COMPLETE.fullmatch(p.name))]
    before = sorted(((s, p) for s, p in found if s < step), reverse=True)
    later = [p for s, p in found if s > step]
    replaced = [p for p in place.iterdir() if _REPLACED.fullmatch(p.name)]
    for path in [*later, *(p for _, p in before[keep - 1 :]), *replaced]:
        _remove(path)


def tidy_checkpoints(folder: Path) -> None:
    """Mends what a save that died left in a run's folder: half a checkpoint goes, one that was moved aside returns."""
    place = folder / FOLDER
    for path in list(place.iterdir()):
        if _UNFINISHED.fullmatch(path.name):
            _remove(path)
        elif found := _REPLACED.fullmatch(path.name):
            home = place / f"step-{found[1]}"
            if not home.exists():
                files.rename(path, home)


def _remove(path: Path) -> None:
    """Removes a checkpoint; first it loses its name, so that none is ever seen half removed."""
    try:
        if _COMPLETE.fullmatch(path.name):
            hidden = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
            files.rename(path, hidden)
            path = hidden
        shutil.rmtree(path)
    except OSError as error:
        # The new checkpoint is safe, so this is no reason to stop a run; but it takes space that somebody may need.
        warnings.warn(f"{path} is no longer needed but cannot be removed ({error.strerror}); remove it", stacklevel=2)


# --- loading ---------------------------------------------------------------------------------------------------------


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has got as far as a checkpoint, damaged or not; if not, it can only start from its beginning."""
    return bool(_candidates(folder / FOLDER))


def load_latest_checkpoint(folder: Path, on_damaged: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint of a run that is complete and whose every byte is what was written.

    folder:     the run's folder
    on_damaged: called with one line for each newer one that is passed over: which file, and why

    Raises RunFailed where none can be used.
    """
    place = folder / FOLDER
    damaged: list[str] = []
    for path in _candidates(place):
        try:
            return _load(path)
        except Damaged as reason:
            damaged.append(f"{path}: {reason}")
            on_damaged(damaged[-1])
    if not damaged:
        raise RunFailed(f"{place} holds no complete checkpoint; start the run again with `dinghai train`")
    raise RunFailed(
        f"every checkpoint of the run is damaged; the newest is {damaged[0]}\n"
        "restore one from a backup, or start the run again with `dinghai train`"
    )


def _candidates(place: Path) -> list[Path]:
    """Folders that may hold a checkpoint, newest first; of one step, the one in place before the one it replaced."""
    if not place.is_dir():
        return []
    found = [(m, p) for p in place.iterdir() if (m := _COMPLETE.fullmatch(p.name) or _REPLACED.fullmatch(p.name))]
    order = sorted(found, key=lambda pair: (int(pair[0][1]), not pair[1].name.startswith(".")), reverse=True)
    return [path for _, path in order]


def _load(path: Path) -> Checkpoint:
    manifest = verified_manifest(path, needed=_STATE)
    found = _COMPLETE.fullmatch(path.name) or _REPLACED.fullmatch(path.name)
    if found and int(found[1]) != manifest["step"]:
        raise Damaged(f"it holds step {manifest['step']}; the folder was renamed")
    try:
        state = files.read_json(path / _STATE)
        tensors: dict[str, dict[str, Tensor]] = {}
        for group, ties in manifest["tied"].items():
            named = safetensors.torch.load_file(path / (group + SUFFIX))
            tensors[group] = named | {name: named[stored] for name, stored in ties.items()}
    except (ValueError, SafetensorError) as error:
        raise Damaged(str(error)) from error
    except OSError as error:
        raise Damaged(f"it cannot be read: {error.strerror or error}") from error
    return Checkpoint(manifest["step"], tensors, state, path)
