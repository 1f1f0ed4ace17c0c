"""Which parameters of a rule are its bounds, what each concerns, and the values that others have trained with.

A bound is a parameter that decides from which ratio on a token's gradient is taken away. What it is measured in is the
rule's own business (an offset from 1, nats, a difference of probabilities, a cap): `ParameterInfo.unit` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dinghai.config.recipe_table import OURS, RECIPES
from dinghai.objective import PolicyLoss, Rule, find_rule
from dinghai.objective.parameters import ParameterInfo

_NICE = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
_DECADES = range(-6, 2)  # 1e-6, the rounding of float32, to 80: a ratio of 81


@dataclass(frozen=True)
class Bound:
    """A bound of a rule, as a run has set it."""

    info: ParameterInfo
    value: float
    regions: tuple[str, ...]  # in which it takes gradient away
    sign: int  # of the advantages that it concerns; 0: of both
    of_sequences: bool  # whether the ratio is that of a sequence

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def usual(self) -> tuple[float, float]:
        """Where published runs lie that have such a ratio."""
        return (self.info.usual_sequence if self.of_sequences else None) or self.info.usual

    @property
    def values(self) -> list[float]:
        """Round values that it may have, ascending, ten a decade; those that switch it off are left out."""
        cap = self.info.unit == "absolute ratio"
        found = [float(f"{nice * 10.0**decade + cap:.12g}") for decade in _DECADES for nice in _NICE]
        return [value for value in found if self.info.admits(value) and not self._is_off(value)]

    @property
    def whose(self) -> str:
        """Whose gradient it takes, e.g. "good tokens"."""
        what = "answers" if self.of_sequences else "tokens"
        return {1: f"good {what}", -1: f"bad {what}", 0: what}[self.sign]

    def log_ratios(self, value: float) -> tuple[float, ...]:
        """Where it lies at a value, nats; empty where that is not decided by the ratio alone."""
        if self.info.unit == "offset from 1":
            ends = {"upper": (1 + value,), "lower": (1 - value,), "both": (1 - value, 1 + value)}[self.side]
            return tuple(math.log(ratio) for ratio in ends if ratio > 0)
        if self.info.unit == "log-ratio, nats":
            return (value,) if self.side == "upper" else (-value,)
        return (math.log(value),) if self.info.unit == "absolute ratio" else ()

    @property
    def side(self) -> str:
        """ "upper", "lower" or "both": of r = 1."""
        above = bool({"overshoot", "relapse"} & set(self.regions))
        below = bool({"escaped", "forgotten"} & set(self.regions))
        return "both" if above and below else "upper" if above else "lower"

    def _is_off(self, value: float) -> bool:
        return (self.info.unit == "offset from 1" and self.side != "upper" and value >= 1) or (
            self.info.unit == "probability" and value >= 1
        )


@dataclass(frozen=True)
class Published:
    """A value that others have trained with."""

    value: float
    who: str
    source: str


_Acts = dict[str, tuple[tuple[str, ...], int]]  # bound -> regions in which it acts, sign of the advantages or 0
_STOPS: _Acts = {"eps_low": (("escaped",), -1), "eps_high": (("overshoot",), 1)}
_DELTAS: _Acts = {"delta_low": (("escaped",), -1), "delta_high": (("overshoot",), 1)}
_OUTWARD = ("overshoot", "escaped")

# Rule -> its bounds -> (regions in which it takes gradient away, sign of the advantages that it concerns).
_BOUNDS: dict[str, _Acts] = {
    **dict.fromkeys(
        ("ppo", "grpo", "dual_clip", "dapo", "gspo", "gspo_token", "luspo", "gmpo", "dcpo", "ppo_rb", "aspo"), _STOPS
    ),
    "dppo_tv": _DELTAS,
    "dppo_kl": _DELTAS,
    "tr_ppo": {"delta": (_OUTWARD, 0)},
    "bandpo_tv": {"delta": (_OUTWARD, 0)},
    "bandpo_chi2": {"delta": (_OUTWARD, 0)},
    "bandpo_kl": {"delta": (_OUTWARD, 0)},
    "spo": {"eps": (_OUTWARD, 0)},
    "vaco": {"budget": (_OUTWARD, 0)},
    "m2po": {"tau": (_OUTWARD, 0)},
    "cispo": {"cap": (("overshoot", "relapse"), 0)},
    "dispo": {"eps_high_pos": (("overshoot",), 1), "eps_high_neg": (("relapse",), -1)},
}

# Why rules that do have an ε get no advice on it.
_NOT_ADVISED = {
    "ce_gppo": "beyond eps_low and eps_high it goes on with a gradient of fixed size, which beta_1 and beta_2 set: "
    "these are what to turn",
    "bapo": "it chooses its bounds anew for each minibatch; rho, the share of the surrogate that good tokens are to "
    "have, is what to turn",
    "clip_cov": "its eps_low and eps_high are set to 1 on purpose, and it stops tokens by their covariance: share is "
    "what to turn",
    "kl_cov": "it stops no token: kl_coef pulls back those of the highest covariance, and share says how many",
}


def bounds_of(policy_loss: PolicyLoss) -> list[Bound]:
    """The bounds of an objective that advice can be given on; those that are off are left out.

    A rule of the user's own has those that are called eps_low and eps_high.
    """
    rule = policy_loss.rule
    if rule.name in _NOT_ADVISED:
        return []
    ours = rule.surrogate.__module__.startswith("dinghai.")
    known = _BOUNDS.get(rule.name, {} if ours else _STOPS)
    found = []
    for info in rule.describe():
        value = getattr(policy_loss.parameters, info.name)
        if info.name in known and value is not None and math.isfinite(value):
            regions, sign = known[info.name]
            found.append(Bound(info, float(value), regions, sign, policy_loss.ratio != "token"))
    return found


def why_no_bounds(rule: Rule) -> str:
    """What a rule has in place of bounds, a sentence."""
    if rule.name in _NOT_ADVISED:
        return f"{rule.title} gets no advice on ε: {_NOT_ADVISED[rule.name]}."
    knobs = rule.describe()
    if not knobs:
        return f"{rule.title} has no ε: {rule.formula} at every ratio, so there is nothing to set."
    what = "; ".join(f"{info.name} ({info.unit}) is {info.description}" for info in knobs)
    return f"{rule.title} has no ε that is set. What it has: {what}."


def published(bound: Bound, rule: Rule) -> list[Published]:
    """Values of the bound in this unit and for this kind of ratio: the rule's default first, then others, ascending.

    A default that is meant for another kind of ratio is left out.
    """
    meant = bound.info.default is not None and (rule.ratio_levels[0] != "token") == bound.of_sequences
    default = [Published(bound.info.default, "the rule's default", rule.paper)] if meant and bound.info.default else []
    others: dict[float, Published] = {}
    for found in (*_of_recipes(bound), *_of_others(bound)):
        others.setdefault(found.value, found)
    return default + [others[value] for value in sorted(others) if value not in {one.value for one in default}]


def _of_recipes(bound: Bound) -> Iterator[Published]:
    for recipe in RECIPES.values():
        chosen = {choice.key: choice for choice in recipe.settings}
        rule = find_rule(str(chosen["objective.rule"].value))
        choice = chosen.get(f"objective.{bound.name}") or chosen.get(f"objective.parameters.{bound.name}")
        info = next((info for info in rule.describe() if info.name == bound.name), None)
        if (
            choice is None
            or info is None
            or bound.name not in _BOUNDS.get(rule.name, {})
            or choice.source.startswith(OURS)
        ):
            continue
        ratio = str(chosen["objective.ratio"].value) if "objective.ratio" in chosen else rule.ratio_levels[0]
        if info.unit == bound.info.unit and (ratio != "token") == bound.of_sequences:
            yield Published(float(choice.value), recipe.title.rpartition(", as in ")[2], recipe.paper)


# (name of the bound, whether of sequences, value, who, source), in offsets from 1, beside what recipes have.
_OTHERS = (
    ("eps_low", True, 4e-3, "ScaleRL's GSPO", "arXiv 2510.13786, appendix A.17"),
    ("eps_high", True, 5e-3, "ScaleRL's GSPO", "arXiv 2510.13786, appendix A.17"),
    ("eps_high", False, 0.27, "GSPO's GRPO baseline", "arXiv 2507.18071, section 5.1"),
    ("eps_high", False, 0.4, "ProRL", "arXiv 2505.24864"),
)


def _of_others(bound: Bound) -> Iterator[Published]:
    for name, of_sequences, value, who, source in _OTHERS:
        if (name, of_sequences, bound.info.unit) == (bound.name, bound.of_sequences, "offset from 1"):
            yield Published(value, who, source)
