"""What both sides are told, and what both tell: the same run in Dinghai's terms and in TRL's, as JSON."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch


@dataclass(frozen=True)
class Job:
    """One run: `steps` batches of rollouts, each used for two updates on all of its completions.

    folder:    holds the model and the prompts (toy_language.py)
    words:     the file of prompts
    dtype:     precision that Dinghai samples with; TRL samples with the trained weights
    rollouts:  file of completions: TRL leaves those it drew there, Dinghai takes them instead of drawing
    rows:      completions of one forward and backward pass of TRL; more passes make up an update
    """

    folder: str
    steps: int
    words: str = "long.jsonl"
    prompts: int = 16
    group_size: int = 16
    new_tokens: int = 128
    lr: float = 1e-4
    seed: int = 0
    threads: int = 2
    dtype: str = "float32"
    rollouts: str | None = None
    rows: int = 32

    @property
    def completions(self) -> int:
        return self.prompts * self.group_size


UPDATES = 2  # on each batch
EPS = 0.2
BETAS = (0.9, 0.999)
MAX_GRAD_NORM = 1.0


@dataclass
class Result:
    """What happened, one number a step.

    began, processor: the wall's clock, and the processor's for this process, when each step began and the last ended
    """

    began: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    rollout: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    updates: int = 0
    initial_weights: str = ""
    peak_gb: float = 0.0  # resident memory of the process at its largest

    def tick(self) -> None:
        """A step begins, or the last one has ended."""
        self.began.append(time.perf_counter())
        self.processor.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        return differences(self.began)


def differences(values: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def fingerprint(parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of names, shapes and values."""
    total = hashlib.sha256()
    for name, parameter in sorted(parameters):
        total.update(f"{name} {list(parameter.shape)}".encode())
        total.update(parameter.detach().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def given() -> tuple[Job, Path]:
    """The job of this process, and where its result goes."""
    return Job(**json.loads(sys.argv[1])), Path(sys.argv[2])


def leave(result: Result, path: Path) -> None:
    result.peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    path.write_text(json.dumps(asdict(result)), encoding="utf-8")
