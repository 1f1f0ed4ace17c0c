"""Checks that two evaluations of the same weights agree: r = 1 in the first update, and the engine with the trainer.

Shapes: N tokens, X tokens or sequences, whichever have the ratio that the rule sees.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.checks.apart import THRESHOLDS as PATTERNS
from dinghai.lens.doctor.checks.apart import Evaluations, Reason, reason
from dinghai.lens.doctor.checks.places import first_rows, largest, place_of, token_of
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place, opened
from dinghai.lens.noise import Apart
from dinghai.lens.tokens import Tokens
from dinghai.lens.words import percent

_FIRST_KL = Threshold(
    1e-8,
    "nats a token, between two evaluations of the same weights: a difference of 1.4e-4, ten times what float32 leaves "
    "of a log-prob; the tests of slime hold the KL of the first step to it",
    "arithmetic",
)
_ENGINE_KL = Threshold(
    0.01,
    "nats a token between engine and trainer: training was stable below it in the experience of Tinker's authors "
    "(Tinker documentation, RL hyperparameters); bfloat16 engines are reported at 0.001",
    "folklore",
)
_ENGINE_KL_FAR = Threshold(0.1, "ten times that: no rounding does it", "folklore")
_GROWN = Threshold(2.0, "times the KL of the first steps: worth a word, no finding by itself", "folklore")

_KEPT = Threshold(
    0.1,
    "of the way to the rule's nearest bound (root mean square): scatter below it decides next to nothing",
    "arithmetic",
)

_ROUNDING = 2.0**-18  # nats: of log π_sampler in the trace, with as much again for float32
_SCORE_OLD = '; or let the trainer score log π_old (update.shortcuts.old_log_probs = "score")'


def _ratio_not_one(case: Case) -> Finding | None:
    """In the first update on a batch log π_new and log π_old are of the same weights."""
    first = _Compared(case, lambda tokens: (tokens.logp_new, tokens.logp_old), lambda tokens: tokens.update == 0)
    if first.both is None or first.kl <= _FIRST_KL.value:
        return None
    as_engine = first.old_is_as_engines
    from_engine = as_engine and case.setting("update.shortcuts.old_log_probs") not in ("score", "first-update")
    source = "rollout.dtype" if from_engine else "model.dtype"
    why = reason(case, first.both, source, _dtype(case, source))
    seen = Apart.of(
        first.both.apart_N, first.both.trainer_N, first.both.sequence_N, str(case.setting("objective.ratio"))
    )
    size = float(np.sqrt(np.mean(seen.difference_X**2)))
    bound = case.nearest_bound
    outside = float((np.abs(seen.difference_X) > bound).mean()) if bound else 0.0
    harmless = not why.systematic and bound is not None and size < _KEPT.value * bound
    evidence = [
        Evidence(
            f"in the first update of a batch log r should be 0, and is {size:.2g} (root mean square over {seen.what})"
            + (f"; {percent(outside)} of the {seen.what} lie beyond the rule's nearest bound" if outside else ""),
            Place(step=first.worst_step, update=0),
        ),
        Evidence(why.pattern),
        *first.worst_tokens("π_new"),
    ]
    if as_engine:
        whose = "may be the engine's own" if from_engine else "is not what is off: log π_new is"
        evidence.append(Evidence(f"log π_old agrees with what the engine reported, to its rounding: it {whose}"))
    return Finding(
        check="ratio-not-one",
        grade=Grade.NOTE if harmless else Grade.INVALID,
        share=min(1.0, outside or first.kl),
        title="The ratio is not 1 before anything was learned",
        evidence=tuple(evidence),
        cause=f"{opened(why.cause)}; so the clip acts on what no update did"
        if not harmless
        else f"{opened(why.cause)}; it stays far from the rule's bounds",
        fix=why.fix + (_SCORE_OLD if from_engine else ""),
        view="regions",
    )


def _engine_mismatch(case: Case) -> Finding | None:
    """log π_old, the trainer's, against log π_sampler, the engine's.

    Where the one was taken for the other they agree, and what is wrong shows as r != 1.
    """
    found = _Compared(case, lambda tokens: (tokens.logp_old, tokens.logp_sampler), _once)
    if found.both is None or found.kl <= _ENGINE_KL.value:
        return None
    why = reason(case, found.both, "rollout.dtype", _dtype(case, "rollout.dtype"))
    evidence = [
        Evidence(
            f"the KL between the two is {found.kl:.2g} nats a token (training is reported to be stable below "
            f"{_ENGINE_KL.value:g}), most at step {found.worst_step}",
            Place(step=found.worst_step),
        ),
        Evidence(why.pattern),
        *found.worst_tokens("π_sampler", other=True),
    ]
    if (growth := found.growth) is not None:
        evidence.append(Evidence(growth))
    corrections = case.table("objective", "corrections")
    grave = found.kl > _ENGINE_KL_FAR.value or why.kind in ("shifted", "temperature")
    return Finding(
        check="engine-mismatch",
        grade=Grade.NOTE if corrections else Grade.INVALID if grave else Grade.HARMFUL,
        share=min(1.0, found.kl),
        title="The engine that samples and the trainer are not the same policy",
        evidence=tuple(evidence),
        cause=f"{opened(why.cause)}; so the tokens are not drawn from the policy whose gradient is taken",
        fix=_engine_fix(why, corrections),
        view="regions",
    )


def _engine_fix(why: Reason, corrections: dict[str, object]) -> str:
    if corrections:
        return f"objective.corrections ({', '.join(corrections)}) corrects for it; at its root: {why.fix}"
    return why.fix if why.systematic else f"{why.fix}, or correct for it with objective.corrections.tis"


class _Compared:
    """Two log-probs of the tokens of the steps that are looked at.

    columns: the trainer's log-prob, and the other one. which: the tokens to compare.
    """

    def __init__(
        self,
        case: Case,
        columns: Callable[[Tokens], tuple[np.ndarray, np.ndarray]],
        which: Callable[[Tokens], np.ndarray],
    ) -> None:
        self._case = case
        self._pieces: list[tuple[int, Tokens, np.ndarray, Evaluations]] = []
        for step in case.steps:
            tokens = case.tokens(step)
            if tokens is None:
                continue
            trainer_N, other_N = columns(tokens)
            rows = np.flatnonzero(which(tokens) & tokens.scored & np.isfinite(trainer_N) & np.isfinite(other_N))
            if len(rows):
                both = Evaluations(
                    trainer_N[rows].astype(np.float64),
                    other_N[rows].astype(np.float64),
                    tokens.entropy[rows],
                    tokens.sample[rows].astype(np.int64) + (step << 32),
                    tokens.position[rows],
                )
                self._pieces.append((step, tokens, rows, both))
        self.both = _joined([piece[3] for piece in self._pieces])

    @property
    def kl(self) -> float:
        """KL(other || trainer), k3, nats a token."""
        return float(np.mean(self.both.kl_N)) if self.both is not None else 0.0

    @property
    def worst_step(self) -> int:
        return int(max(self._pieces, key=lambda piece: float(np.mean(piece[3].kl_N)))[0])

    @property
    def old_is_as_engines(self) -> bool:
        """Whether log π_old is log π_sampler to the trace's rounding, as it is if it was taken from the engine, and as
        good as if engine and trainer both compute in float32."""
        same, count = 0, 0
        for _, tokens, rows, _ in self._pieces:
            apart_N = np.abs(tokens.logp_old[rows].astype(np.float64) - tokens.logp_sampler[rows])
            same, count = same + int((apart_N <= _ROUNDING).sum()), count + len(rows)
        return same > 0.99 * count

    @property
    def growth(self) -> str | None:
        """A sentence where the KL has grown from the first third of the steps to the last."""
        by_step = [float(np.mean(piece[3].kl_N)) for piece in self._pieces]
        third = len(by_step) // 3
        if third < 1:
            return None
        begin, end = np.mean(by_step[:third]), np.mean(by_step[-third:])
        if end <= _GROWN.value * begin:
            return None
        return f"it grew from {begin:.2g} in the first third of the steps to {end:.2g} in the last"

    def worst_tokens(self, name: str, other: bool = False, count: int = 2) -> list[Evidence]:
        """The tokens that lie furthest apart. name: of the probability that is given beside π_old."""
        candidates: list[tuple[float, int, Tokens, int, float]] = []
        for step, tokens, rows, both in self._pieces:
            sizes_N = np.abs(both.apart_N)
            logp_N = both.other_N if other else both.trainer_N
            candidates += [
                (float(sizes_N[at]), step, tokens, int(rows[at]), float(np.exp(np.minimum(logp_N[at], 0))))
                for at in largest(sizes_N, count)
            ]
        return [
            Evidence(
                f"{token_of(tokens, row)} has {name} {value:.2g}: {size:.2g} nats apart",
                place_of(self._case, step, tokens, row),
            )
            for size, step, tokens, row, value in sorted(candidates, key=lambda one: -one[0])[:count]
        ]


def _joined(pieces: list[Evaluations]) -> Evaluations | None:
    if not pieces:
        return None
    names = ("trainer_N", "other_N", "entropy_N", "sequence_N", "position_N")
    return Evaluations(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))


def _once(tokens: Tokens) -> np.ndarray:
    """[N] bool: each token in the first update that took it; in later ones it is the same pair of log-probs again."""
    once_N = np.zeros(len(tokens), dtype=bool)
    once_N[first_rows(tokens)] = True
    return once_N


def _dtype(case: Case, setting: str) -> str:
    """Of the sampling weights it is the model's where nothing else was set."""
    return str(case.setting(setting) or case.setting("model.dtype"))


CHECKS = (
    Check(
        "ratio-not-one",
        "The ratio is not 1 in the first update on a batch, where both log-probs are of the same weights.",
        {"kl": _FIRST_KL, "kept": _KEPT, **PATTERNS},
        _ratio_not_one,
        of_tokens=True,
    ),
    Check(
        "engine-mismatch",
        "The engine that samples and the trainer give the same tokens other log-probs.",
        {"kl": _ENGINE_KL, "far": _ENGINE_KL_FAR, "grown": _GROWN, **PATTERNS},
        _engine_mismatch,
        of_tokens=True,
    ),
)
