"""The noise floor: how far two evaluations of the same weights lie apart.

The engine that samples a token and the trainer that trains on it compute the same probability by different code, in
another order and perhaps another precision. What the two differ by is rounding; a bound that lies within it stops
tokens by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.errors import DinghaiError
from dinghai.lens.settings import table
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader
from dinghai.trace.schema import MARKER, step_folder


@dataclass(frozen=True)
class Noise:
    """|log π_old - log π_sampler| in nats: of a token, or of a sequence where the rule sees its ratio."""

    median: float
    q95: float  # 95 of 100 lie below
    of: str  # "tokens" or "sequences"


def noise_floor(run_folder: Path, config: dict[str, Any], step: int) -> Noise | None:
    """The noise in one step of a run.

    None where it cannot be known: the step is not recorded or damaged, top-k or top-p sampling has made the sampler's
    distribution another one on purpose, or the sampler's own numbers may have been taken for log π_old.
    """
    rollout, objective = table(config, "rollout"), table(config, "objective")
    if not rollout or not objective or rollout.get("top_p") != 1.0 or rollout.get("top_k") != 0:
        return None
    if table(table(config, "update"), "shortcuts").get("old_log_probs") == "engine":
        return None
    trace = Path(run_folder) / "trace"
    try:
        written = (step_folder(trace, step) / MARKER).stat().st_mtime_ns
        return _measured(trace, step, str(objective.get("ratio")), written)
    except (OSError, DinghaiError):
        return None  # reading the step for its own sake says what is wrong with it


@lru_cache(maxsize=64)
def _measured(trace: Path, step: int, ratio: str, written: int) -> Noise | None:
    """`written` is when the step was: a page asks every second, and the answer changes only with the file."""
    reader = TraceReader(trace)
    tokens = read_tokens(reader, step, reader.updates(step)[0], ["sample", "logp_sampler", "logp_old"])
    apart_N = (tokens.logp_old - tokens.logp_sampler).astype(np.float64)
    if ratio.startswith("sequence"):
        _, row_N = np.unique(tokens.sample, return_inverse=True)
        apart_N = np.bincount(row_N, apart_N) / (1 if ratio == "sequence-product" else np.bincount(row_N))
    apart_N = np.abs(apart_N[np.isfinite(apart_N)])
    if not len(apart_N):
        return None
    median, q95 = np.quantile(apart_N, [0.5, 0.95])
    return Noise(float(median), float(q95), "sequences" if ratio.startswith("sequence") else "tokens")
