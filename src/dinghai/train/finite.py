"""No silent NaN: a non-finite number stops the run before the optimiser step, and says which token it came from.

What stopped a run is left in its folder as `failure.json`, for the doctor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dinghai.errors import DinghaiError, RunFailed
from dinghai.files import json_line, write_atomically
from dinghai.lens.failure import FAILURE_FILE, Failure
from dinghai.tasks.base import Prompt
from dinghai.train.batch import Batch

ADVICE = "the weights are as before this update and the last checkpoint is intact"


class NotFinite(RunFailed):
    """A number was NaN or infinite; `failure` says which, and where."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@contextlib.contextmanager
def failure_kept_in(run_folder: Path) -> Iterator[None]:
    """Leaves what stops the run within in its folder; what stopped it before is forgotten, as it goes on.

    An interruption is no failure.
    """
    (run_folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        _write_failure(run_folder, error)
        raise


def _write_failure(run_folder: Path, error: Exception) -> None:
    if isinstance(error, NotFinite):
        failure = error.failure
    else:
        kind = "" if isinstance(error, DinghaiError) else f"{type(error).__name__}: "
        failure = Failure(kind + (str(error).splitlines() or [""])[0][:1000])
    with contextlib.suppress(OSError):  # a folder that cannot be written to must not hide the error itself
        write_atomically(run_folder / FAILURE_FILE, json_line(dataclasses.asdict(failure)))


def require_finite_reward(reward: Sequence[float], prompt: Prompt, step: int) -> None:
    """Raises RunFailed naming step, prompt and completion if a reward of a prompt's completions is not finite.

    Functions of one's own are held to it where they are called; this is for a task's verifier and for the sum.
    """
    for number, value in enumerate(reward):
        if not math.isfinite(value):
            message = f"step {step}: the reward is {value} at completion {number} of prompt {prompt.id!r}; {ADVICE}"
            raise NotFinite(Failure(message, tensor="the reward", step=step))


def require_finite_tokens(what: str, value_N: Tensor, batch: Batch, chosen: Sequence[int], step: int) -> None:
    """Raises RunFailed naming step, sample and token if a token's value that counts in the loss is not finite."""
    bad_N = ~torch.isfinite(value_N.detach().cpu()) & batch.mask_N(chosen)
    if not bad_N.any():
        return
    first = int(bad_N.nonzero()[0, 0])
    sample = int(batch.sample_N(chosen)[first])
    position = int(batch.position_N(chosen)[first])
    token = batch.sequences[sample].completion_ids[position]
    message = (
        f"step {step}: {what} is {value_N[first].item()} at sample {sample} (prompt {batch.prompts[sample].id!r}), "
        f"token {position} (id {token}), and at {int(bad_N.sum()) - 1} more; {ADVICE}"
    )
    group = int(batch.groups[sample])
    raise NotFinite(Failure(message, what, step, None, group, sample, position, int(token)))


def require_finite(what: str, value: Tensor, step: int, update: int, cure: str) -> None:
    """Raises RunFailed if a scalar of the whole update (its loss or gradient norm) is not finite."""
    if not torch.isfinite(value):
        message = f"step {step}, update {update}: {what} is {value.item()}; {ADVICE}; {cure}"
        raise NotFinite(Failure(message, tensor=what, step=step, update=update))
