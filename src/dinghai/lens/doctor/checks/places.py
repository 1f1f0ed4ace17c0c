"""Which tokens of the trace are meant, and where they stand, for checks that read tokens. Shapes: N tokens."""

from __future__ import annotations

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.finding import Place
from dinghai.lens.tokens import Tokens


def place_of(case: Case, step: int, tokens: Tokens, row: int) -> Place:
    """Of one row of a recorded step's tokens."""
    sample = int(tokens.sample[row])
    return Place(step, int(tokens.update[row]), case.group_of(step).get(sample), sample, int(tokens.position[row]))


def largest(values_N: np.ndarray, count: int) -> list[int]:
    """Rows of the `count` largest values, the largest first; what is not finite is never among them."""
    comparable_N = np.where(np.isfinite(values_N), values_N, -np.inf)
    rows = np.argsort(-comparable_N, kind="stable")[:count]
    return [int(row) for row in rows if np.isfinite(comparable_N[row])]


def token_of(tokens: Tokens, row: int) -> str:
    """E.g. "token 17 (π_old 0.0031)"; what it spells stands with the place in a report."""
    with np.errstate(over="ignore"):
        return f"token {int(tokens.token[row])} (π_old {float(np.exp(tokens.logp_old[row], dtype=np.float64)):.2g})"


def first_rows(tokens: Tokens) -> np.ndarray:
    """Indices of the rows of each token in the first update that took it, ordered by sample and position.

    tokens: of a step, ordered by update: in later epochs the same tokens come again.
    """
    return np.unique(tokens.sample.astype(np.int64) << 32 | tokens.position, return_index=True)[1]
