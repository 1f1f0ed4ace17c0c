"""The claims about the clip, each with the parts that can be shown at once: by hand, by autograd, by the rule, by runs.

Keys are those of the explainer's claims (`claim.KEY` in its words), and stand in its order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from common.page import percent, with_interval
from common.results import Results
from single_tokens import EPS, LossByHand, Shown, grpo_loss, highest_ratio, ratios_are_per_token, share_of_stopped, show

ROUNDING = 1e-12
TRUE, HALF, FALSE = "true", "half", "false"
DUAL_CLIP = 3.0  # c
DAPO_HIGH = 0.28


@dataclass(frozen=True)
class Part:
    """One thing that a claim says: what was looked at, what was found, and whether that is so."""

    says: str
    found: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """Of the explainer's key.

    parts: what can be shown at once. kind: "shown" if they decide; else it takes an experiment, or is a paper's finding
    study: that experiment
    """

    key: str
    parts: Sequence[Part]
    remark: str = ""
    kind: Literal["shown", "experiment", "reported"] = "shown"
    study: str | None = None

    @property
    def verdict(self) -> str:
        """true: every part holds; half: some; false: none. None of these where it takes an experiment."""
        if self.kind != "shown":
            return self.kind
        holds = [part.holds for part in self.parts]
        return TRUE if all(holds) else HALF if any(holds) else FALSE


# --- the tokens that show it -----------------------------------------------------------------------------------------

INSIDE = ((0.81, 1), (0.9, -1), (1.1, 1), (1.1, -1), (1.19, -1))
OVERSHOOT = ((1.21, 1), (1.43, 1), (5, 1))
RELAPSE = ((1.21, -1), (1.8, -1), (50, -1))
FORGOTTEN = ((0.79, 1), (0.4, 1), (0.1, 1))
ESCAPED = ((0.79, -1), (0.5, -1), (0.1, -1))


@cache
def tokens() -> dict[str, list[Shown]]:
    """By the region that they are to show; `dual` under a dual clip."""
    shown = {
        "inside": INSIDE,
        "overshoot": OVERSHOOT,
        "relapse": RELAPSE,
        "forgotten": FORGOTTEN,
        "escaped": ESCAPED,
    }
    found = {region: [show(r, a) for r, a in pairs] for region, pairs in shown.items()}
    return found | {"dual": [show(r, a, dual_clip=DUAL_CLIP) for r, a in ((2.9, -1), (5, -1), (50, -1))]}


def claims(results: Results) -> list[Claim]:
    """All claims, in the explainer's order."""
    of, loss = tokens(), grpo_loss()
    alone, in_sequence = ratios_are_per_token()
    return [
        Claim("objective", [_same_loss(loss)], "the form of 2024; later ones average otherwise and leave the KL out"),
        Claim(
            "ratio",
            [Part("the ratio of a token is its own", f"moved by {alone:g} when another token moves", alone == 0)],
            f"of a sequence (GSPO) it is not: moved by {in_sequence:.3f}",
        ),
        Claim("inside", [_kept(of["inside"])]),
        Claim("overshoot", [_value_fixed(of["overshoot"], 1 + EPS), _gradient_left(of["overshoot"])]),
        Claim(
            "relapse",
            [_kept(of["relapse"])],
            f"with a dual clip at {DUAL_CLIP:g} the gradient {_at(of['dual'])} is {_numbers(of['dual'], 'gradient')}",
        ),
        Claim("forgotten", [_kept(of["forgotten"]), _shrinks(of["forgotten"])]),
        Claim("min", [_value_fixed(of["escaped"], 1 - EPS), _min_takes_clipped(of["escaped"])]),
        Claim("escaped", [_gradient_left(of["escaped"])], "what is constant is the value"),
        Claim(
            "protects",
            [_stopped(of["escaped"]), _escaped_in_runs(results)],
            "true as a direction; how much it is differs by run, and is what the reports measure",
        ),
        Claim(
            "restricts",
            [_stopped(of["overshoot"]), _kept(of["relapse"])],
            "it also stops pushing a bad token further away (escaped)",
        ),
        Claim("collapse", _not_by_the_formula(results), kind="experiment", study="what_the_clip_is_for"),
        Claim("tuning", [], "`dinghai replay`, `dinghai epsilon`, `dinghai doctor` are made for it", kind="experiment"),
        Claim("entropy", [], kind="reported", study="entropy_and_bounds"),
        Claim("higher", [], kind="reported", study="clip_higher"),
        Claim("gspo", [], kind="reported", study="gspo_fraction"),
        Claim("likely", [_cannot_reach(0.9), _can_reach(0.5)], "only where π_old > 1/(1+ε_high)"),
        Claim("fraction", [_fraction_is_share()], study="tokens_and_gradient"),
    ]


def _same_loss(loss: LossByHand) -> Part:
    return Part(
        f"the rule `grpo` with k3 in the loss is this formula, value and gradient, to {ROUNDING:g}",
        f"{loss.by_hand:.15f} by hand, {loss.by_rule:.15f} by the rule; largest difference of either {loss.error:.1g} "
        f"over {loss.tokens} tokens",
        loss.error <= ROUNDING,
    )


def _numbers(shown: Sequence[Shown], what: str) -> str:
    return ", ".join(f"{getattr(token, what):.4g}" for token in shown)


def _at(shown: Sequence[Shown]) -> str:
    return f"at r = {_numbers(shown, 'ratio')}"


def _kept(shown: Sequence[Shown]) -> Part:
    holds = all(abs(t.gradient - t.ratio * t.advantage) <= 1e-12 * t.ratio and t.effect == "kept" for t in shown)
    return Part(
        f"in `{shown[0].region}` the gradient is r·A, as without a clip",
        f"{_numbers(shown, 'gradient')} {_at(shown)}",
        holds,
    )


def _stopped(shown: Sequence[Shown]) -> Part:
    holds = all(t.gradient == 0 and t.weight == 0 and t.effect == "stopped" for t in shown)
    return Part(
        f"in `{shown[0].region}` the gradient is exactly 0", f"{_numbers(shown, 'gradient')} {_at(shown)}", holds
    )


def _value_fixed(shown: Sequence[Shown], factor: float) -> Part:
    holds = all(abs(t.value - factor * t.advantage) <= ROUNDING for t in shown)
    return Part(f"the value is fixed at {factor:g}·A", f"{_numbers(shown, 'value')} {_at(shown)}", holds)


def _gradient_left(shown: Sequence[Shown]) -> Part:
    return Part(
        "a gradient is left, constant and not 0",
        f"it is {_numbers(shown, 'gradient')} {_at(shown)}",
        all(t.gradient != 0 for t in shown) and len({t.gradient for t in shown}) == 1,
    )


def _shrinks(shown: Sequence[Shown]) -> Part:
    sizes = [abs(t.gradient) for t in sorted(shown, key=lambda t: -t.ratio)]
    return Part("it shrinks with r", f"{_numbers(shown, 'gradient')}", sizes == sorted(sizes, reverse=True))


def _min_takes_clipped(shown: Sequence[Shown]) -> Part:
    holds = all(t.value < t.ratio * t.advantage for t in shown)
    return Part("(1−ε)·A is the more negative of the two", f"r·A is {_numbers(shown, 'unclipped')}", holds)


def _escaped_in_runs(results: Results) -> Part:
    found = results.interval("ppo", "removed_escaped")
    return Part(
        "of a run's gradient a part is removed in `escaped`",
        f"{with_interval(found, percent)} of it, over {len(results.seeds)} seeds",
        found is not None and found.above_zero,
    )


def _not_by_the_formula(results: Results) -> list[Part]:
    farthest = max(results.numbers("ppo", "log_ratio_largest").values(), default=None)
    first = max(results.numbers("ppo", "stopped_first").values(), default=None)
    if farthest is None or first is None:
        return [Part("the clip bounds the ratio, and acts on the first update of a batch", "no run to tell", False)]
    return [
        Part(
            "the clip bounds the ratio",
            f"the largest ratio of a token in runs with the clip is {math.exp(farthest):.3g}",
            farthest <= math.log(1 + EPS),
        ),
        Part("it acts on the first update of a batch", f"it stops {percent(first)} of the tokens there", first > 0),
    ]


def _cannot_reach(p_old: float) -> Part:
    highest = highest_ratio(p_old)
    token = show(highest, 1, p_old=p_old, eps_high=DAPO_HIGH)
    return Part(
        f"with π_old = {p_old:g} no ratio reaches 1+ε_high = {1 + DAPO_HIGH:g}",
        f"at π_new = 1, r is {highest:.3f}: {token.region}",
        token.region == "inside",
    )


def _can_reach(p_old: float) -> Part:
    token = show(highest_ratio(p_old), 1, p_old=p_old, eps_high=DAPO_HIGH)
    return Part(f"with π_old = {p_old:g} one does", f"{token.region}", token.region == "overshoot")


def _fraction_is_share() -> Part:
    fraction, share = share_of_stopped()
    return Part(
        "they are equal",
        f"of an unlikely token that is stopped and a likely one that is not, {percent(fraction)} are stopped and "
        f"{percent(share)} of the gradient",
        abs(fraction - share) <= ROUNDING,
    )
