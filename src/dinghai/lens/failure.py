"""Reads `failure.json`: why a run had to stop, as the training that stopped wrote it down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from dinghai.files import read_json

FAILURE_FILE = "failure.json"
_BYTES_AT_MOST = 100_000


@dataclass(frozen=True)
class Failure:
    """What went wrong last in a run that has not been resumed since. None where it is not known or does not apply."""

    message: str  # as the command line said it
    tensor: str | None = None  # what was not finite, e.g. "logp_new"; None: the run failed for another reason
    step: int | None = None
    update: int | None = None  # index within the batch of rollouts
    group: int | None = None
    sample: int | None = None
    position: int | None = None  # of the token within its completion
    token: int | None = None  # id in the vocabulary


def read_failure(run_folder: Path) -> Failure | None:
    """The failure of a run; None where it has none, or where the file is damaged."""
    try:
        found = read_json(Path(run_folder) / FAILURE_FILE, largest=_BYTES_AT_MOST)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("message"), str):
        return None
    numbers = {f.name: found.get(f.name) for f in dataclasses.fields(Failure)[2:]}
    tensor = found.get("tensor")
    return Failure(
        found["message"],
        tensor if isinstance(tensor, str) else None,
        **{name: value for name, value in numbers.items() if isinstance(value, int)},
    )
