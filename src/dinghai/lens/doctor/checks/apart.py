"""Why two evaluations of the same tokens lie apart: a diagnosis by the pattern of the differences and the settings.

Shapes: N tokens.

The two should be the log-probs that the same weights give. Each cause leaves another pattern: a temperature moves each
token in proportion to log p + H; truncated sampling moves all one way, since what is left of the distribution is scaled
up; log-probs of the neighbouring token agree once they are shifted; rounding and dropout scatter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinghai.errors import DinghaiError
from dinghai.files import read_json
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Threshold
from dinghai.lens.words import counted, joined, percent

THRESHOLDS = {
    "one sided": Threshold(
        0.99, "share of the differences below 0: truncation scales up all that it leaves", "arithmetic"
    ),
    "temperature fit": Threshold(
        0.7, "share of the differences' squares that log p + H explains; scatter leaves near 0", "arithmetic"
    ),
    "shifted fit": Threshold(
        0.8, "correlation with the neighbouring token's log-prob; that with its own is then lower", "statistics"
    ),
    "few completions": Threshold(
        0.9, "share of the differences' squares in a tenth of the completions or fewer", "statistics"
    ),
    "scatter": Threshold(
        1e-3, "nats, median: float32 leaves a hundredth of it or less, bfloat16 (8 bits) as much or more", "arithmetic"
    ),
}

_LEAST_TOKENS = 30  # fewer have no pattern
_ROUNDING = 2.0**-18  # nats: of log π_sampler in the trace, with as much again for float32


@dataclass(frozen=True)
class Evaluations:
    """Log-probs of the same tokens, by the trainer and by the other one, in nats; what is not finite was left out."""

    trainer_N: np.ndarray  # float64
    other_N: np.ndarray  # float64
    entropy_N: np.ndarray  # float32, of the trainer's distribution; NaN where it is not known
    sequence_N: np.ndarray  # which completion
    position_N: np.ndarray

    @property
    def apart_N(self) -> np.ndarray:
        return self.trainer_N - self.other_N

    @property
    def kl_N(self) -> np.ndarray:
        """k3 of each token, whose mean estimates KL(other || trainer): the tokens were drawn from the other."""
        with np.errstate(over="ignore"):
            return np.expm1(self.apart_N) - self.apart_N


@dataclass(frozen=True)
class Reason:
    """Why they lie apart. `systematic`: it moves the gradient one way, and more data do not average it out."""

    kind: str
    pattern: str  # what shows it: a sentence for the evidence
    cause: str
    fix: str
    systematic: bool


def reason(case: Case, both: Evaluations, precision: str, dtype_setting: str) -> Reason:
    """The first cause whose pattern is there, from the most to the least telling.

    Args:
        precision: the setting that says in which precision the other evaluation was done, e.g. "rollout.dtype".
        dtype_setting: its value.
    """
    found = None
    if len(both.apart_N) >= _LEAST_TOKENS:
        found = _shifted(both) or _temperature(both) or _truncated(case, both) or _few_completions(both)
    return found or _scattered(case, both, precision, dtype_setting)


def _shifted(both: Evaluations) -> Reason | None:
    """Log-probs of the next or of the previous token."""
    own = _correlation(both.trainer_N, both.other_N)
    order = np.lexsort((both.position_N, both.sequence_N))
    trainer_N, other_N, sequence_N = both.trainer_N[order], both.other_N[order], both.sequence_N[order]
    same_N = sequence_N[1:] == sequence_N[:-1]
    for where, pair in (
        ("next", (trainer_N[:-1][same_N], other_N[1:][same_N])),
        ("previous", (trainer_N[1:][same_N], other_N[:-1][same_N])),
    ):
        fit = _correlation(*pair)
        if fit > THRESHOLDS["shifted fit"].value and own < fit - 0.2:
            return Reason(
                "shifted",
                f"they agree with the log-probs of the {where} token (correlation {fit:.2f}; with their own {own:.2f})",
                "the log-probs are shifted by one token: those of one side belong to its neighbour",
                "align the log-probs: position t of the logits gives the log-prob of token t + 1",
                True,
            )
    return None


def _temperature(both: Evaluations) -> Reason | None:
    """A temperature T' of the other: d log p / d(1/T) = (log p + H)."""
    lever_N = both.trainer_N + both.entropy_N
    known_N = np.isfinite(lever_N)
    lever_N, apart_N = lever_N[known_N], both.apart_N[known_N]
    squares = float(lever_N @ lever_N)
    if not squares or len(lever_N) < _LEAST_TOKENS:
        return None
    slope = float(lever_N @ apart_N) / squares
    explained = slope * float(lever_N @ apart_N) / float(apart_N @ apart_N)
    if explained < THRESHOLDS["temperature fit"].value or slope >= 1:
        return None
    return Reason(
        "temperature",
        f"log p + H explains {percent(explained)} of the differences' squares, as a temperature does that is about "
        f"{1 / (1 - slope):.2g} times the trainer's",
        "the two are taken at different temperatures",
        "take both at the temperature of rollout.temperature: divide the logits by it before every log-softmax",
        True,
    )


def _truncated(case: Case, both: Evaluations) -> Reason | None:
    top_p, top_k = case.setting("rollout.top_p"), case.setting("rollout.top_k")
    moved_N = both.apart_N[np.abs(both.apart_N) > _ROUNDING]
    below = float((moved_N < 0).mean()) if len(moved_N) else 0.0
    if below < THRESHOLDS["one sided"].value:
        return None
    scaled = np.exp(-np.min(both.apart_N))
    named = [f"rollout.top_p {top_p}"] if isinstance(top_p, int | float) and top_p < 1 else []
    named += [f"rollout.top_k {top_k}"] if isinstance(top_k, int) and top_k > 0 else []
    return Reason(
        "truncated",
        f"{percent(below)} of those that differ are likelier to the sampler, by a factor of up to {scaled:.2g}"
        + (f", with {joined(named)}" if named else ""),
        "the sampler draws from a truncated distribution, in which the tokens that are left are likelier",
        "set rollout.top_p = 1 and rollout.top_k = 0, or correct for it with objective.corrections.tis",
        True,
    )


def _few_completions(both: Evaluations) -> Reason | None:
    _, place_N = np.unique(both.sequence_N, return_inverse=True)
    by_sequence = np.sort(np.bincount(place_N, both.apart_N**2))[::-1]
    few = len(by_sequence) // 10
    if few < 1 or by_sequence[:few].sum() < THRESHOLDS["few completions"].value * by_sequence.sum():
        return None
    return Reason(
        "few completions",
        f"{percent(float(by_sequence[:few].sum() / by_sequence.sum()))} of the differences' squares lie in "
        f"{counted(few, 'completion')} of {len(by_sequence):,}",
        "some completions are read otherwise than they were: by padding, packing, positions or a cut prompt",
        "compare how those completions are read: attention mask, position ids, prompt and where it was cut",
        True,
    )


def _scattered(case: Case, both: Evaluations, precision: str, dtype: str) -> Reason:
    size = float(np.median(np.abs(both.apart_N)))
    sign = float((both.apart_N > 0).mean())
    pattern = f"they scatter to both sides ({percent(sign)} above 0), by {size:.2g} nats in the median"
    rates = dropout_rates(case)
    if rates:
        return Reason(
            "dropout",
            f"{pattern}; the model's configuration has {joined(rates[:3])}",
            "dropout is on: each pass leaves out other units",
            "switch dropout off: model.eval(), and every dropout rate of the model's configuration 0",
            False,
        )
    if dtype == "bfloat16":
        return Reason(
            "precision",
            f"{pattern}; {precision} is bfloat16",
            "bfloat16 keeps 8 bits: another order of the same sums gives another log-prob",
            f'set {precision} = "float32"',
            False,
        )
    if size > THRESHOLDS["scatter"].value:
        return Reason(
            "randomness",
            pattern,
            "something random or stale: dropout, weights that are not those that are trained, or bfloat16 in a kernel",
            "switch dropout off (model.eval()), take both log-probs with the same weights, and compare in float32",
            False,
        )
    return Reason(
        "batch shape",
        pattern,
        "rounding: micro-batches of another shape or another kernel add the same numbers in another order",
        "evaluate both in micro-batches of the same shape (update.micro_batch_tokens), or in float32",
        False,
    )


def dropout_rates(case: Case) -> list[str]:
    """Dropout rates above 0 of the run's model, by its configuration, e.g. "attn_pdrop 0.1"; empty where none is."""
    try:
        config = read_json(case.folder / "model" / "config.json")
    except (OSError, ValueError, DinghaiError):
        return []
    if not isinstance(config, dict):
        return []
    return [
        f"{name} {rate:g}"
        for name, rate in config.items()
        if ("drop" in name and isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < 1)
    ]


def _correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
    if len(x_N) < _LEAST_TOKENS or not x_N.std() or not y_N.std():
        return 0.0
    return float(np.corrcoef(x_N, y_N)[0, 1])
