"""Tokens as an objective decides about them beside what was recorded of them, and what both add up to.

Shapes: N tokens as recorded, P parts into which they fall, K sums (`KEYS`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dinghai.lens.regions import REGIONS
from dinghai.lens.tokens import Tokens
from dinghai.trace.schema import SIGNIFICANT_BITS

SIGNAL_REGIONS = tuple(name for name in REGIONS if name not in ("masked", "no_signal"))
KEYS = (
    "signal",  # tokens with A != 0
    "stopped",  # of these, tokens whose weight is exactly 0
    "gradient",  # Σ f·|w0|·(1-p), w0 = r·A of the ratio that the rule looks at
    "removed",  # the part of it that the rule took away
    "dot",  # Σ f²·w·w_own·(1-p)²
    "norm",  # Σ (f·w·(1-p))²
    "differ",  # tokens whose effect is another than the recorded one
    *(f"stopped/{region}" for region in SIGNAL_REGIONS),
    *(f"removed/{region}" for region in SIGNAL_REGIONS),
)


@dataclass(frozen=True, eq=False)
class Replayed:
    """Tokens as an objective decides about them, beside what was recorded of them. All [N], in the recorded order."""

    tokens: Tokens  # as recorded
    decided: Tokens  # the same with the objective's weight, region, effect, log_ratio, factor and correction

    @property
    def weight_N(self) -> np.ndarray:
        """w, float32, rounded as the trace rounds it."""
        return self.decided.weight

    @property
    def region_N(self) -> np.ndarray:
        """int64, index in `lens.regions.REGIONS`."""
        return self.decided.region

    @property
    def effect_N(self) -> np.ndarray:
        """int64, index in `lens.regions.EFFECTS`."""
        return self.decided.effect

    @property
    def log_ratio_N(self) -> np.ndarray:
        """Nats, float32, of the ratio that the objective looks at; NaN where the token was never scored."""
        return self.decided.log_ratio

    @property
    def factor_N(self) -> np.ndarray:
        """f_t of the objective's reduction, float32."""
        return self.decided.factor

    @cached_property
    def signed_N(self) -> np.ndarray:
        """f·w·(1-p), float64: the token's part of the gradient, as far as it can be compared without the model."""
        return _signed(self.decided.weight, self.decided)

    @cached_property
    def own_signed_N(self) -> np.ndarray:
        """The same of the recorded weight, float64."""
        return _signed(self.tokens.weight, self.decided)

    @property
    def gradient_N(self) -> np.ndarray:
        """f·|w|·(1-p), float64."""
        return np.abs(self.signed_N)

    @property
    def removed_N(self) -> np.ndarray:
        """What the rule took of f·|w0|·(1-p), float32."""
        return self.decided.removed

    @property
    def stopped_N(self) -> np.ndarray:
        """The weight is exactly 0 though there is a signal, bool."""
        return self.decided.stopped

    @property
    def differ_N(self) -> np.ndarray:
        """The effect is another than the recorded one, bool."""
        return self.decided.effect != self.tokens.effect

    @property
    def same_weight_N(self) -> np.ndarray:
        """The weight is the recorded one, bool: to the last bit that the trace keeps.

        To one unit of that where both have a correction, since the trace rounds its factor as well.
        """
        here_N, there_N = self.decided.weight, self.tokens.weight
        same_N: np.ndarray = (here_N == there_N) | (np.isnan(here_N) & np.isnan(there_N))
        if self.tokens.correction is not None and self.decided.correction is not None:
            unit_N = np.spacing(np.abs(there_N)) * np.float32(2 ** (24 - SIGNIFICANT_BITS["weight"]))
            with np.errstate(invalid="ignore"):
                same_N |= np.abs(here_N - there_N) <= unit_N
        return same_N

    @property
    def as_recorded_N(self) -> np.ndarray:
        """Region, effect and weight are those of the trace, bool."""
        same_N = (self.decided.region == self.tokens.region) & (self.decided.effect == self.tokens.effect)
        return same_N & self.same_weight_N


def _signed(weight_N: np.ndarray, tokens: Tokens) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(tokens.norm == 0, 0.0, weight_N.astype(np.float64) * tokens.norm)


def sums_of(replayed: Replayed, part_N: np.ndarray | None = None, parts: int = 1) -> np.ndarray:
    """The sums `KEYS`: [K] float64, or [P, K] with the part that each token belongs to, [N] int. They add up.

    From the sums of one candidate and `own_sums_of` the same tokens follow the stopped fraction, the share of gradient
    removed and, with `cosine`, how far apart the two gradients point.
    """
    decided = replayed.decided
    part_of_N = np.zeros(len(decided), dtype=np.int64) if part_N is None else part_N
    signal_N = decided.signal

    def summed(values_N: np.ndarray) -> np.ndarray:
        return np.bincount(part_of_N, weights=values_N, minlength=parts)

    with np.errstate(invalid="ignore", over="ignore"):
        columns = [
            summed(signal_N),
            summed(replayed.stopped_N),
            summed(decided.gradient),
            summed(decided.removed),
            summed(replayed.signed_N * replayed.own_signed_N),
            summed(replayed.signed_N**2),
            summed(replayed.differ_N),
        ]
    place_N = part_of_N * len(REGIONS) + decided.region
    for values_N in (replayed.stopped_N, decided.removed):
        by_region = np.bincount(place_N, weights=values_N, minlength=parts * len(REGIONS)).reshape(parts, len(REGIONS))
        columns += [by_region[:, REGIONS.index(region)] for region in SIGNAL_REGIONS]
    sums_PK = np.stack(columns, axis=1)
    return sums_PK[0] if part_N is None else sums_PK


def own_sums_of(replayed: Replayed, part_N: np.ndarray | None = None, parts: int = 1) -> np.ndarray:
    """The same of what was recorded."""
    factor = {"factor": replayed.factor_N}  # traces of version 1 have none
    return sums_of(Replayed(replayed.tokens, Tokens(dict(replayed.tokens.columns) | factor)), part_N, parts)


def cosine(sums_K: np.ndarray, own_K: np.ndarray) -> float:
    """Of the two gradients f·w·(1-p), token for token; NaN where one of them is 0 or not finite."""
    norms = float(sums_K[KEYS.index("norm")]) * float(own_K[KEYS.index("norm")])
    if not 0 < norms < math.inf:
        return math.nan
    return float(sums_K[KEYS.index("dot")]) / math.sqrt(norms)
