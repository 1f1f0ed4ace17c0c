"""Files that are complete or absent: atomic writes, checksums, and JSON in which non-finite numbers stay visible."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

# Levels of nesting. What Dinghai writes has fewer than ten; a deeper file was not written by it.
DEEPEST_JSON = 64

# Bytes. A JSON file that Dinghai reads whole (not metrics.jsonl, which is read by line) is far smaller.
LARGEST_JSON = 64 * 1024 * 1024

_CHUNK = 1024 * 1024


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file such that at every moment, a crash and a power cut included, `path` holds the old or the new data.

    Text is written as UTF-8. Raises OSError (a full disk, a missing folder); the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        write_durably(temporary, data)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_durably(path: Path, data: bytes | str) -> None:
    """Writes a new file and waits until it is on the disk. Raises FileExistsError where there is one already."""
    with path.open("xb") as file:
        write_all(file, data.encode() if isinstance(data, str) else data)
        file.flush()
        fsync_open(file)


def write_all(file: BinaryIO, data: bytes) -> None:
    """Writes all of `data`. One of the few places where this package touches the disk, so that tests can break it."""
    file.write(data)


def fsync_open(file: BinaryIO) -> None:
    """Waits until an open file is on the disk."""
    os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    """Waits until a closed file is on the disk."""
    with path.open("rb") as file:
        fsync_open(file)


def fsync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk; without it a rename may be lost in a power cut."""
    if os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Renames a file or folder in one step, over an existing file or an empty folder."""
    os.replace(source, target)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def json_line(record: Any) -> str:
    """A record as one line of JSON, with its newline. Non-finite numbers become "NaN", "Infinity" and "-Infinity".

    JSON has no word for them, and `null` would hide which of the three it was; `float()` reads the words back.
    """
    return json.dumps(nonfinite_as_text(record), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def nonfinite_as_text(value: Any) -> Any:
    """The value with each non-finite float in it replaced by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: nonfinite_as_text(item) for key, item in value.items()}
    return [nonfinite_as_text(item) for item in value] if isinstance(value, list | tuple) else value


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The value in a JSON file. Raises ValueError where it is too large (bytes), too deep or no JSON, and OSError."""
    size = path.stat().st_size
    if size > largest:
        raise ValueError(f"{size:,} bytes, more than the {largest:,} that such a file may have")
    return parse_json(path.read_bytes())


def parse_json(text: bytes | str) -> Any:
    """The value that JSON text stands for. Raises ValueError where it is nested too deeply or no JSON (NaN is none)."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST_JSON} levels deep") from error
    _check_depth(value)
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [i for v in level if isinstance(v, dict | list) for i in (v.values() if isinstance(v, dict) else v)]
    if any(isinstance(v, dict | list) for v in level):
        raise ValueError(f"nested more than {DEEPEST_JSON} levels deep")
