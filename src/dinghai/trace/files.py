"""Changes to the disk whose failures are told in words: which file, why, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from dinghai import files
from dinghai.errors import RunFailed

_HOW_TO_MEND = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EACCES: "let yourself write there (its permissions forbid it)",
    errno.EPERM: "let yourself write there (its permissions forbid it)",
    errno.EROFS: "make that disk writable, or move the run to one that is",
}


def write_atomically(path: Path, content: bytes, then: str = "resume the run") -> None:
    """As `dinghai.files.write_atomically`: a reader never sees half a file.

    Args:
        then: what the user does once the disk is mended.

    Raises:
        RunFailed: the disk is full, or it may not be written to; names the file and how to mend it.
    """
    changing_disk(path, lambda: files.write_atomically(path, content), then)


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that is not there yet; `wait_for_disk` makes it last.

    Raises:
        RunFailed: as `write_atomically`.
    """

    def write() -> None:
        with path.open("xb") as file:
            files.write_all(file, content)

    changing_disk(path, write)


def wait_for_disk(path: Path) -> None:
    """Returns when a file, or the names in a folder, will outlast a power cut.

    Raises:
        RunFailed: as `write_atomically`.
    """
    changing_disk(path, lambda: files.fsync_folder(path) if path.is_dir() else files.fsync_file(path))


def changing_disk(path: Path, action: Callable[[], object], then: str = "resume the run") -> None:
    """Run an action that changes `path`.

    Raises:
        RunFailed: as `write_atomically`.
    """
    try:
        action()
    except OSError as error:
        reason = error.strerror or str(error)
        mend = _HOW_TO_MEND.get(error.errno or 0, "check that disk")
        raise RunFailed(f"could not write {path}: {reason}. To mend it, {mend}; then {then}") from error
