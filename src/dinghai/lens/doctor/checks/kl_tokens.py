"""Checks of how far the policy moved: within a batch, with the tokens that carry it, and from the reference.

Shapes: N tokens.
"""

from __future__ import annotations

import statistics

import numpy as np

from dinghai.errors import DinghaiError
from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.checks.places import largest, place_of, token_of
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.series import Row, is_finite, last_tenth, steps_and_values
from dinghai.lens.tokens import Tokens
from dinghai.lens.words import counted, ordinal, percent

_KL = Threshold(
    0.1,
    "nats a token within one batch; Spinning Up's PPO leaves a batch at 1.5 times a target_kl of 0.01 to 0.05, at "
    "0.015 to 0.075, and Stable-Baselines3 at 1.5 times its own",
    "folklore",
)
_KL_REFERENCE = Threshold(
    1.0, "nats a token: each token is about e times likelier than before; usual is 0.01 to 0.3", "folklore"
)
_RARE = Threshold(0.01, "π_old below which a token is called rare in the evidence", "folklore")

_KEY = "kl_old_new_k3"
_REFERENCE_KEYS = ("kl_ref_k3", "kl_ref_k1", "kl_ref_k2", "kl_ref_k3+", "kl_ref_k1+")


def _kl_blow_up(case: Case) -> Finding | None:
    limit = _KL.value
    series = steps_and_values(case.training, f"clip/{_KEY}")
    far = [pair for pair in series if pair[1] > limit]
    if not far:
        return None
    step, worst = max(far, key=lambda pair: pair[1])
    first = (
        f"at step {step} by {worst:.2g} nats a token from the policy that sampled (more than {limit:g} in {len(far):,} "
        f"of {counted(len(series), 'step')}, first at step {far[0][0]})"
    )
    return Finding(
        check="kl-blow-up",
        grade=Grade.HARMFUL,
        share=len(far) / len(series),
        title="The policy moves too far within a batch",
        evidence=(Evidence(first, Place(step=step)), *_carriers(case, step)),
        cause="The updates on one batch take the policy further than its samples can say anything about",
        fix="try a lower update.lr, fewer updates a batch, or update.target_kl",
        view="curves",
    )


def _carriers(case: Case, step: int, count: int = 3) -> list[Evidence]:
    """The tokens that carry the KL of a step, in the update in which it is largest; none without its trace."""
    tokens = _tokens_of_worst_update(case, step)
    if tokens is None or not len(tokens):
        return []
    update = int(tokens.update[0])
    kl_N = _kl(tokens)
    whole = float(kl_N.sum())
    if not whole > 0:
        return []
    order = np.argsort(-kl_N, kind="stable")
    half = int(np.searchsorted(np.cumsum(kl_N[order]), whole / 2)) + 1
    few = order[:half]
    rare = int((tokens.logp_old[few] < np.log(_RARE.value)).sum())
    ids, counts = np.unique(tokens.token[few], return_counts=True)
    of_one = f", {_part(int(counts.max()), half)} token {int(ids[counts.argmax()])}" if half > 1 else ""
    found = [
        Evidence(
            f"half of the KL of the {ordinal(update + 1)} update lies in {counted(half, 'token')} of "
            f"{len(tokens):,}, {_part(rare, half)} rare (π_old below {_RARE.value:g}){of_one}",
            Place(step=step, update=update),
        )
    ]
    return found + [
        Evidence(
            f"{token_of(tokens, row)} is {_times(float(tokens.logp_new[row]) - float(tokens.logp_old[row]))}: "
            f"{percent(float(kl_N[row]) / whole)} of that KL",
            place_of(case, step, tokens, row),
        )
        for row in largest(kl_N, count)
    ]


def _part(some: int, of: int) -> str:
    """Of those tokens: all of them, none of them, 12.5% of them."""
    if of == 1:
        return "it is" if some else "it is not"
    return "none of them" if not some else "all of them" if some == of else f"{percent(some / of)} of them"


def _tokens_of_worst_update(case: Case, step: int) -> Tokens | None:
    """Of any recorded step, also of one that the other checks pass over."""
    row: Row = next((row for row in case.training if row["step"] == step), {})
    series = [(entry["update"], entry[_KEY]) for entry in row.get("by_update") or [] if is_finite(entry, _KEY)]
    try:
        recorded = case.updates(step)
    except DinghaiError:
        return None
    worst = max(series, key=lambda pair: pair[1])[0] if series else recorded[-1]
    return case.tokens(step, worst if worst in recorded else recorded[-1])


def _kl(tokens: Tokens) -> np.ndarray:
    """[N] float64, k3 of each token, whose mean estimates KL(old || new); 0 where it is not known or not finite."""
    with np.errstate(all="ignore"):
        log_r_N = tokens.logp_new.astype(np.float64) - tokens.logp_old
        kl_N = np.expm1(log_r_N) - log_r_N
    return np.where(np.isfinite(kl_N), kl_N, 0.0)


def _times(log_r: float) -> str:
    size = np.exp(min(abs(log_r), 700.0))
    return f"{size:.3g} times {'likelier' if log_r > 0 else 'rarer'} than when it was sampled"


def _far_from_reference(case: Case) -> Finding | None:
    limit = _KL_REFERENCE.value
    for key in _REFERENCE_KEYS:
        series = steps_and_values(case.training, key)
        if not series or statistics.median(value for _, value in last_tenth(series)) <= limit:
            continue
        since = next(step for step, value in series if value > limit)
        step, worst = max(series, key=lambda pair: pair[1])
        return Finding(
            check="far-from-reference",
            grade=Grade.HARMFUL,
            share=sum(value > limit for _, value in series) / len(series),
            title="The policy has run away from where it began",
            evidence=(
                Evidence(f"KL to the reference passed {limit:g} nat a token at step {since}", Place(step=since)),
                Evidence(f"it reached {worst:.3g} at step {step}", Place(step=step)),
            ),
            cause="What the penalty takes is less than what the reward gives for going further",
            fix="try a higher objective.kl.beta or a lower update.lr",
            view="curves",
        )
    return None


CHECKS = (
    Check(
        "kl-blow-up",
        "The policy moves too far within a batch of rollouts.",
        {"kl": _KL, "rare": _RARE},
        _kl_blow_up,
    ),
    Check(
        "far-from-reference",
        "The policy has run away from the reference.",
        {"kl": _KL_REFERENCE},
        _far_from_reference,
    ),
)
