"""What the command line says when a command fails: one or two lines on stderr, and the exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from dinghai.config.messages import printable
from dinghai.errors import DinghaiError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def report_error(error: BaseException, debug: bool) -> int:
    """Says on stderr what went wrong, the traceback first if `debug`, and returns the exit status."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in printable(_explanation(error, debug)).splitlines():
        print(f"dinghai: {line}", file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_status if isinstance(error, DinghaiError) else 1


def _explanation(error: BaseException, debug: bool) -> str:
    """One or two lines: what is wrong, and how to mend it."""
    resume = f"`dinghai resume {_run_of(error)}`"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {resume} goes on from the last checkpoint"
    if _is_disk_full(error):
        return f"the disk is full; free space, then {resume} goes on from the last checkpoint"
    if isinstance(error, DinghaiError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return "stopped, since nothing reads the output any more"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name alone
        return "the GPU is out of memory; lower update.micro_batch_tokens or rollout.batch_size"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}" + ("" if debug else "; `--debug` shows where this came up")
    first_line = (str(error).splitlines() or [""])[0][:300]
    hint = "" if debug else "; `--debug` shows the traceback"
    return f"{type(error).__name__}: {first_line}{_place_of(error)}\nthis is a bug in Dinghai, please report it{hint}"


def _run_of(error: BaseException) -> str:
    """The run's folder, where training has left it in a note (`error.add_note(f"run: {folder}")`)."""
    notes: list[str] = getattr(error, "__notes__", [])
    return next((n.removeprefix("run: ") for n in notes if n.startswith("run: ")), "RUN")


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _is_disk_full(error: BaseException) -> bool:
    return any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it, as a traceback would list them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
