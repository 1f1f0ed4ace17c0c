"""Writing a file so that it is either there in full or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from dinghai.errors import RunFailed

_HOW_TO_MEND = {
    errno.ENOSPC: "free some space on that disk, or lower trace.tokens",
    errno.EDQUOT: "your quota on that disk is used up: free some space, or lower trace.tokens",
    errno.EACCES: "you may not write there: mend its permissions, or choose another run.folder",
    errno.EPERM: "you may not write there: mend its permissions, or choose another run.folder",
    errno.EROFS: "that disk is read-only: choose another run.folder",
}


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write under a temporary name, flush to the disk, rename. A reader never sees half a file.

    Raises:
        RunFailed: the disk is full, or it may not be written to; names the file and how to mend it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # What is left of the temporary file may be what fills the disk; if it cannot go, the first error matters more.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def changing_disk(path: Path, action: Callable[[], object]) -> None:
    """Run an action on `path` (making or removing a folder), its failure told as for a write.

    Raises:
        RunFailed: as `write_atomically`.
    """
    try:
        action()
    except OSError as error:
        raise cannot_write(path, error) from error


def flush_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut, as fsync does for the content of a file.

    Raises:
        RunFailed: as `write_atomically`.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> RunFailed:
    reason = error.strerror or str(error)
    mend = _HOW_TO_MEND.get(error.errno or 0, "check that disk")
    return RunFailed(f"could not write {path}: {reason}. To mend it, {mend}; then resume the run")
