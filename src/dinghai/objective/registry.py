"""The registry of rules: a name, its parameters and where it was published. A new rule is one line in RULES."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.parameters import ParameterInfo, Parameters, describe
from dinghai.objective.ratio import RATIO_LEVELS, RatioLevel
from dinghai.objective.rules import ClipParameters, TokenInputs, clip_region, clip_surrogate, clip_weight

RuleFunction = Callable[[TokenInputs, Any], Tensor]


@dataclass(frozen=True)
class Rule:
    """One objective of the family: its functions [N] -> [N], its parameters, its paper."""

    name: str
    paper: str
    surrogate: RuleFunction  # J per token, maximised
    weight: RuleFunction  # coefficient of ∇log π_new in ∇J: the closed form of the surrogate's gradient
    region: RuleFunction  # `Region` per token
    parameters: type[Parameters]
    ratio_levels: tuple[RatioLevel, ...] = RATIO_LEVELS

    def describe(self) -> list[ParameterInfo]:
        """Its parameters with unit, default, usual range and description."""
        return describe(self.parameters)

    def parse(self, given: Mapping[str, object]) -> Parameters:
        """Checked parameters from names and values; those not given take their defaults.

        Raises:
            InputError: an unknown name (the nearest is suggested) or a value out of range.
        """
        known = [info.name for info in self.describe()]
        for name in given:
            if name not in known:
                raise InputError(f"rule {self.name!r} has no parameter {name!r}{nearest(name, known)}")
        return self.parameters(**given)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("ppo", "arXiv 1707.06347, equation 7", clip_surrogate, clip_weight, clip_region, ClipParameters),
        Rule("grpo", "arXiv 2402.03300, equation 3", clip_surrogate, clip_weight, clip_region, ClipParameters),
    )
}


def find_rule(name: str) -> Rule:
    """The rule of a name.

    Raises:
        InputError: there is none; the message suggests the nearest name.
    """
    if name not in RULES:
        raise InputError(f"unknown rule {name!r}{nearest(name, list(RULES))}")
    return RULES[name]


def scale_warnings(rule: Rule, parameters: Parameters, ratio: RatioLevel) -> list[str]:
    """A sentence for each parameter whose value belongs to another ratio than the one in use, ten times off or more."""
    sentences = []
    for info in rule.describe():
        value = getattr(parameters, info.name)
        usual = info.usual if ratio == "token" else info.usual_sequence
        if value is None or usual is None or math.isinf(value) or usual[0] / 10 <= value <= usual[1] * 10:
            continue
        sentences.append(
            f"{info.name} = {value:g} is on another scale than the ratio of a {ratio}, "
            f"for which {usual[0]:g} to {usual[1]:g} is usual ({info.unit})"
        )
    return sentences


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the likeliest of the known names, and all of them."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" known: {', '.join(known)}"
