"""One process at a time trains in a folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from dinghai.config.messages import one_line
from dinghai.errors import InputError

_PATIENCE = 10.0  # seconds; children of a parent that was killed are gone sooner than that


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[tuple[int, ...]]:
    """Holds a lock on the folder, and gives the descriptors on which it rests.

    Children that are given them hold it too, until the last has ended: so those that outlive a killed parent for a
    moment cannot meet their successors in one run. Without fcntl (Windows) there is no lock.

    Raises InputError if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield ()
        return
    with (folder / ".lock").open("ab") as file:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    where = one_line(str(folder))
                    raise InputError(f"another process trains trials in {where}: wait for it to end") from None
                time.sleep(0.1)
        yield (file.fileno(),)
