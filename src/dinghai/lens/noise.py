"""The noise floor: how far two evaluations of the same weights lie apart.

The engine that samples a token and the trainer that trains on it compute the same probability by different code, in
another order and perhaps another precision. What the two differ by is rounding; a bound that lies within it stops
tokens by chance.

Shapes: N tokens, X values (of tokens or of sequences), B sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.errors import DinghaiError
from dinghai.lens.bins import place_probability
from dinghai.lens.settings import table
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader
from dinghai.trace.schema import FRACTION_BITS, MARKER, step_folder

_ENOUGH_ALIKE = 100  # tokens of similar probability, from which a difference is drawn
_TRACE_ROUNDING = 2.0 ** -(FRACTION_BITS["logp_sampler"] + 1)  # nats


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
        apart_N = _by_sequence(apart_N, tokens.sample, ratio)
    apart_N = np.abs(apart_N[np.isfinite(apart_N)])
    if not len(apart_N):
        return None
    median, q95 = np.quantile(apart_N, [0.5, 0.95])
    return Noise(float(median), float(q95), "sequences" if ratio.startswith("sequence") else "tokens")


@dataclass(frozen=True, eq=False)
class Apart:
    """By how much two evaluations of the same weights differ, value for value, in what the rule's ratio is made of.

    X tokens, or X sequences where the rule looks at the ratio of sequences.
    """

    difference_X: np.ndarray  # float64, nats, finite; of a token's log-prob, or of a sequence's log-ratio
    logp_X: np.ndarray | None  # float32, nats: the log-prob of each token; None for sequences
    ratio: str  # the level of the ratio, e.g. "token" or "sequence"

    @classmethod
    def of(cls, difference_N: np.ndarray, logp_N: np.ndarray, sample_N: np.ndarray, ratio: str) -> Apart:
        """From the differences of tokens [N], in nats; those that are not finite are left out."""
        known_N = np.isfinite(difference_N)
        difference_N, sample_N = difference_N[known_N].astype(np.float64), sample_N[known_N]
        if not ratio.startswith("sequence"):
            return cls(difference_N, logp_N[known_N], ratio)
        return cls(_by_sequence(difference_N, sample_N, ratio), None, ratio)

    @property
    def what(self) -> str:
        """What the values are of."""
        return "sequences" if self.ratio.startswith("sequence") else "tokens"

    def quantile(self, share: float) -> float:
        """The size that this share of the values does not exceed, nats."""
        return float(np.quantile(np.abs(self.difference_X), share))

    def drawn(self, logp_N: np.ndarray, sample_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A difference for each of N other tokens, drawn with replacement: [N] float32, nats.

        A token's is drawn from tokens of similar probability, as rounding depends on it, where there are enough of
        those. All tokens of a sequence share one, of the size that its ratio differs by.
        """
        if self.logp_X is None:
            _, row_N = np.unique(sample_N, return_inverse=True)
            drawn_B = generator.choice(self.difference_X, row_N.max(initial=-1) + 1)
            spread_N = np.bincount(row_N)[row_N] if self.ratio == "sequence-product" else 1
            return (drawn_B[row_N] / spread_N).astype(np.float32)
        shift_N = generator.choice(self.difference_X, len(logp_N))
        here_X, there_N = place_probability(self.logp_X), place_probability(logp_N)
        for place in np.unique(there_N):
            alike_X = self.difference_X[here_X == place]
            if len(alike_X) >= _ENOUGH_ALIKE:
                those_N = there_N == place
                shift_N[those_N] = generator.choice(alike_X, int(those_N.sum()))
        return shift_N.astype(np.float32)


def engine_apart(run_folder: Path, config: dict[str, Any], steps: Iterable[int]) -> Apart | None:
    """log π_old - log π_sampler of the first update's tokens in some recorded steps; None where it cannot be known.

    As `noise_floor`, value for value. Where the engine's log-probs were taken for log π_old, those of the first update
    were still the trainer's own; if they are not, nothing differs by more than the trace rounds, and nothing is known.
    """
    rollout, objective = table(config, "rollout"), table(config, "objective")
    if not rollout or not objective or rollout.get("top_p") != 1.0 or rollout.get("top_k") != 0:
        return None
    reader = TraceReader(Path(run_folder) / "trace")
    differences, log_probs, samples = [], [], []
    for step in steps:
        try:
            tokens = read_tokens(reader, step, reader.updates(step)[0], ["sample", "logp_sampler", "logp_old"])
        except DinghaiError:
            continue
        differences.append((tokens.logp_old - tokens.logp_sampler).astype(np.float64))
        log_probs.append(tokens.logp_old)
        samples.append(tokens.sample.astype(np.int64) + (step << 32))
    if not differences:
        return None
    difference_N, logp_N, sample_N = (np.concatenate(parts) for parts in (differences, log_probs, samples))
    found = Apart.of(difference_N, logp_N, sample_N, str(objective.get("ratio")))
    if not len(found.difference_X):
        return None
    taken = table(table(config, "update"), "shortcuts").get("old_log_probs") == "engine"
    return None if taken and found.quantile(1.0) <= _TRACE_ROUNDING else found


def _by_sequence(difference_N: np.ndarray, sample_N: np.ndarray, ratio: str) -> np.ndarray:
    _, row_N = np.unique(sample_N, return_inverse=True)
    if not len(row_N):
        return difference_N
    return np.bincount(row_N, difference_N) / (1 if ratio == "sequence-product" else np.bincount(row_N))
