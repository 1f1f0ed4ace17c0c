"""Value and weight of a rule as a reader writes them, for one token, and the same with the numbers put in.

A formula stands for the case at hand: of a rule with several branches the one that applies. What is written evaluates
to what the rule's own functions give; the tests evaluate it. Rules that look at more than one token have none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dinghai.catalogue.lone_tokens import LoneToken
from dinghai.objective import Effect, Parameters
from dinghai.objective.rules.clip import ClipParameters

Cases = Mapping[str, str]
"""Case -> formula. The cases are asked in the order: "stopped", the name of the region, "good" (A > 0) or "bad", "any".

Symbols: r, A, π_new, lower and upper (bounds that depend on π_old), and the rule's parameters; of a pair such as
tau_pos and tau_neg the formula says tau.
"""


@dataclass(frozen=True)
class Formulas:
    """Of one rule. The weight of a stopped token is 0, whatever stands here."""

    value: Cases
    weight: Cases = field(default_factory=lambda: {"any": "r·A"})


def _band(lower: str, upper: str, last: str) -> Formulas:
    both = f"min(r·A, clip(r, {lower}, {upper})·A)"
    return Formulas({"dual": f"max({both}, {last}·A)", "any": both})


def _score(weight: Cases) -> Formulas:
    """w·log π_new with w held constant."""
    value = {case: f"{text}·log(π_new)" for case, text in weight.items()}
    return Formulas({"stopped": "0·log(π_new)", **value}, weight)


_CLIP = _band("1-eps_low", "1+eps_high", "dual_clip")
_PRIOR = _band("lower", "upper", "cap")
_IMPORTANCE_SAMPLING = Formulas({"any": "r·A"})
_CAPPED = _score({"any": "min(r, cap)·A"})
_PULLED = Formulas({"any": "A·log(π_new) - tau/2·log(r)²"}, {"any": "A - tau·log(r)"})
_REINFORCE = _score({"any": "A"})
_LEAKY = {
    "escaped": "beta_1·(1-eps_low)·A",
    "overshoot": "beta_2·(1+eps_high)·A",
    "any": "r·A",
}

FORMULAS: dict[str, Formulas] = {
    **dict.fromkeys(("ppo", "grpo", "dual_clip", "dapo", "gspo", "gspo_token", "luspo"), _CLIP),
    **dict.fromkeys(("dcpo", "bandpo_tv", "bandpo_chi2", "bandpo_kl"), _PRIOR),
    **dict.fromkeys(("importance_sampling", "tr_ppo"), _IMPORTANCE_SAMPLING),
    **dict.fromkeys(("reinforce", "rloo"), _REINFORCE),
    **dict.fromkeys(("dppo_tv", "dppo_kl"), _CAPPED),
    **dict.fromkeys(("dro", "kimi"), _PULLED),
    "cispo": _score({"any": "clip(r, floor, cap)·A"}),
    "dispo": _score({"any": "clip(r, 1-eps_low, 1+eps_high)·A"}),
    "topr": _score({"bad": "min(r, 1)·A", "any": "A"}),
    "ce_gppo": Formulas(_LEAKY, _LEAKY),
    "ppo_rb": Formulas(
        {
            "escaped": "((1+alpha)·(1-eps_low) - alpha·r)·A",
            "overshoot": "((1+alpha)·(1+eps_high) - alpha·r)·A",
            "any": "r·A",
        },
        {"escaped": "-alpha·r·A", "overshoot": "-alpha·r·A", "any": "r·A"},
    ),
    "aspo": _score({"bad": "min(r, cap)·A", "any": "min(1/r, cap)·A"}),
    "sapo": Formulas({"any": "4/tau·σ(tau·(r-1))·A"}, {"any": "sech²(tau·(r-1)/2)·r·A"}),
    "vespo": _score({"any": "r^k·exp(lambda·(1-r))·A"}),
    "spo": Formulas({"any": "r·A - |A|·(r-1)²/(2·eps)"}, {"any": "r·(A - |A|·(r-1)/eps)"}),
}

_NAME = re.compile(r"[^\W\d]\w*")


def formula_for(cases: Cases, token: LoneToken) -> str:
    """The formula of the case that the token is in."""
    stopped = "stopped" if token.effect is Effect.STOPPED else ""
    sign = "good" if token.advantage > 0 else "bad"
    return next(cases[case] for case in (stopped, token.region.name.lower(), sign, "any") if case in cases)


def symbols(parameters: Parameters, token: LoneToken, p_old: float) -> dict[str, float]:
    """What each symbol of a formula stands for."""
    found = {name: value for name, value in vars(parameters).items() if value is not None}
    for name in list(found):
        if name.endswith("_pos"):
            stem = name.removesuffix("_pos")
            found[stem] = found[name] if token.advantage > 0 else found[f"{stem}_neg"]
    clip = clip_of(parameters, p_old)
    if clip is not None:
        found |= {"lower": clip.lower, "upper": clip.upper}
    return {**found, "r": token.ratio, "A": token.advantage, "π_new": token.ratio * p_old}


@dataclass(frozen=True)
class Clip:
    """The bounds of a rule whose value is min(r·A, clip(r, lower, upper)·A): absolute ratios."""

    lower: float
    upper: float
    last: float | None  # c: where A < 0 and r is beyond it, max(…, c·A) is taken; None: never

    def clipped(self, ratio: float) -> float:
        """clip(r, lower, upper)"""
        return min(max(ratio, self.lower), self.upper)


def clip_of(parameters: Parameters, p_old: float) -> Clip | None:
    """The bounds of a clip with these parameters; None for a rule of another form."""
    if isinstance(parameters, ClipParameters):
        return Clip(parameters.lower, parameters.upper, parameters.dual_clip)
    bounds = getattr(parameters, "bounds", None)  # that depend on π_old
    if bounds is None:
        return None
    lower_N, upper_N = bounds(torch.tensor([math.log(p_old)], dtype=torch.float64))
    cap = vars(parameters)["cap"]
    return Clip(lower_N.item(), min(upper_N.item(), cap), cap)


def put_in(formula: str, numbers: Mapping[str, float]) -> str:
    """The formula with each symbol replaced by its number; negative ones in parentheses."""

    def number(match: re.Match[str]) -> str:
        value = numbers.get(match[0])
        if value is None:
            return match[0]
        return f"({figure(value)})" if value < 0 else figure(value)

    return _NAME.sub(number, formula).replace("|(", "|").replace(")|", "|")


def figure(value: float) -> str:
    """A number in at most six significant digits."""
    return f"{value:.6g}" if value else "0"
