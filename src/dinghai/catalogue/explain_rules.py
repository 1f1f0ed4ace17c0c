"""The rules as plain data, for the explainer's page: what they are called, their parameters, their formulas."""

from __future__ import annotations

import math
from typing import Any

import torch

from dinghai.catalogue.formulas import FORMULAS
from dinghai.catalogue.lone_tokens import lone_inputs
from dinghai.catalogue.words import rules_in_order
from dinghai.objective import Rule
from dinghai.objective.parameters import ParameterInfo

# Rules that the page cannot draw, since their decision about a token needs others. All others of the registry it can,
# but for those of the user's own, whose mathematics is in Python only.
OTHER_TOKENS = {
    "bapo": "minibatch",
    "clip_cov": "minibatch",
    "kl_cov": "minibatch",
    "m2po": "minibatch",
    "gmpo": "sequence",
    "vaco": "sequence",
}

_FIRST = ("ppo", "grpo", "dual_clip", "dapo")  # of the list: the clip itself; then by the date of the paper


def drawn_rules() -> list[dict[str, Any]]:
    """The rules that are functions of one token's ratio, advantage and probability."""
    drawn = [rule for rule in rules_in_order() if rule.name in FORMULAS]
    drawn.sort(key=lambda rule: _FIRST.index(rule.name) if rule.name in _FIRST else len(_FIRST))
    return [_described(rule) for rule in drawn]


def missing_rules() -> list[dict[str, str]]:
    """The others, each with the reason: "minibatch", "sequence" or "own"."""
    return [
        {"name": rule.name, "title": rule.title, "reason": OTHER_TOKENS.get(rule.name, "own")}
        for rule in rules_in_order()
        if rule.name not in FORMULAS
    ]


def _described(rule: Rule) -> dict[str, Any]:
    formulas = FORMULAS[rule.name]
    return {
        "name": rule.name,
        "title": rule.title,
        "paper": rule.paper,
        "zero": rule.zero,
        "ratio": ratio_kind(rule),
        "holds_constant": holds_constant(rule),
        "by_probability": decides_by_probability(rule),
        "value": dict(formulas.value),
        "weight": dict(formulas.weight),
        "parameters": [_parameter(info, ratio_kind(rule)) for info in rule.describe()],
    }


def ratio_kind(rule: Rule) -> str:
    """Whose ratio the rule's paper means: "token", "sequence" (geometric mean) or "product" (of the whole answer)."""
    level = rule.ratio_levels[0]
    return "product" if level == "sequence-product" else level.removesuffix("-token")


def _parameter(info: ParameterInfo, ratio: str) -> dict[str, Any]:
    """A parameter with the range of its slider, which is wide enough for what is usual, and its allowed range."""
    usual = info.usual_sequence if ratio == "sequence" and info.usual_sequence else info.usual
    low = max(info.above, info.at_least, 0.0)
    default = info.default or usual[0]
    high = min(2.5 * max(usual[1], default), 12 * default if default > 0 else math.inf, info.at_most)
    return {
        "name": info.name,
        "default": info.default,
        "when_on": info.default if info.default is not None else usual[0],
        "optional": info.default is None,
        "unit": info.unit,
        "description": info.description,
        "slider": [low, float(f"{high:.3g}")],
        "above": None if math.isinf(info.above) else info.above,
        "at_least": None if math.isinf(info.at_least) else info.at_least,
        "at_most": None if math.isinf(info.at_most) else info.at_most,
    }


def decides_by_probability(rule: Rule) -> bool:
    """Whether, with the defaults, region or weight depend on the probability of the token beside r and A."""
    parameters = rule.parse({})
    log_ratio_N = torch.linspace(-1.6, 1.6, 65, dtype=torch.float64)
    ratio_2N = torch.cat([log_ratio_N, log_ratio_N]).exp()
    advantage_2N = torch.ones_like(ratio_2N)
    advantage_2N[: len(log_ratio_N)] = -1.0
    rare, common = (
        lone_inputs(rule, parameters, ratio_2N, advantage_2N, torch.full_like(ratio_2N, p_old))
        for p_old in (0.01, 0.19)
    )
    return any(
        not torch.equal(decide(rare, parameters), decide(common, parameters)) for decide in (rule.weight, rule.region)
    )


def holds_constant(rule: Rule) -> bool:
    """Whether the surrogate has a stop-gradient, so that the slope of its value is not the weight.

    Asked of the rule itself: the difference quotient of its value by log r, all of it moved, against its weight.
    """
    step = 1e-6
    middle_N = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64) + 0.0123  # none on a bound
    if ratio_kind(rule) == "sequence":
        middle_N = middle_N * 1e-3
    parameters = rule.parse({})
    for sign in (1.0, -1.0):
        values = []
        for shift in (-step, 0.0, step):
            ratio_N = (middle_N + shift).exp()
            x = lone_inputs(rule, parameters, ratio_N, torch.full_like(ratio_N, sign), torch.full_like(ratio_N, 0.1))
            values.append(rule.surrogate(x, parameters))
            if shift == 0.0:
                weight_N = rule.weight(x, parameters)
        slope_N = (values[2] - values[0]) / (2 * step)
        if not torch.allclose(slope_N, weight_N, rtol=1e-4, atol=1e-4):
            return True
    return False
