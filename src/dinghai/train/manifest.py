"""The manifest of a checkpoint: what it must contain, to the byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dinghai import files

FORMAT = 1
SUFFIX = ".safetensors"

_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1_000_000  # bytes


class Damaged(Exception):
    """Why a checkpoint cannot be used."""


def write_manifest(folder: Path, step: int, tied: dict[str, dict[str, str]]) -> None:
    """Lists every file in the folder with its size and SHA-256.

    tied: group of tensors → name → the stored name that it is tied to; names every group

    The sums are taken of what is read back, so a file that is listed has been readable once.
    """
    listed = {p.name: {"bytes": p.stat().st_size, "sha256": files.sha256_file(p)} for p in folder.iterdir()}
    body = {"files": listed, "format": FORMAT, "step": step, "tied": tied}
    files.write_durably(folder / _MANIFEST, _manifest_bytes(body))


def _manifest_bytes(body: dict[str, Any]) -> bytes:
    """The manifest in its one valid form: sorted, and sealed with its own sum, so that no byte of it can change."""
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({"manifest": body, "sha256": seal}, indent=1, sort_keys=True) + "\n").encode()


def verified_manifest(folder: Path, needed: str) -> dict[str, Any]:
    """The manifest, once it and every file that it lists are what was written.

    needed: a file that must be listed, beside one for each group of tensors. Raises Damaged.
    """
    try:
        manifest = _read_manifest(folder)
        for name in (needed, *(group + SUFFIX for group in manifest["tied"])):
            if name not in manifest["files"]:
                raise Damaged(f"{_MANIFEST} does not list {name}")
        for name, listed in manifest["files"].items():
            _check_file(folder / Path(name).name, listed["bytes"], listed["sha256"])
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise Damaged(f"{Path(error.filename or folder).name} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{_MANIFEST} was not written by Dinghai") from error
    return manifest


def _check_file(path: Path, size: int, sha256: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise Damaged(f"{path.name} has {found:,} bytes instead of {size:,}")
    if files.sha256_file(path) != sha256:
        raise Damaged(f"{path.name} is not what was written (its SHA-256 differs)")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        found = files.read_json(folder / _MANIFEST, largest=_LARGEST_MANIFEST)
        body: dict[str, Any] = found["manifest"]
        is_whole = _manifest_bytes(body) == (folder / _MANIFEST).read_bytes()
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{_MANIFEST} is not what was written") from error
    if not is_whole:
        raise Damaged(f"{_MANIFEST} is not what was written (its SHA-256 differs)")
    if body.get("format") != FORMAT:
        raise Damaged(f"its format is {body.get('format')}, and this version of Dinghai reads {FORMAT}")
    return body
