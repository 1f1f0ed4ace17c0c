"""The registry of rules: a name, a function pair, its parameters and where it was published.

A rule is registered by decorating its surrogate:

    @register_rule("mine", weight=my_weight, title="My rule", paper="unpublished", formula="w = ...", zero="never")
    def my_surrogate(x: TokenInputs, p: NoParameters) -> Tensor: ...

and then has gradients, regions, statistics, trace, report and replay like a built-in one. `dinghai.testing` proves that
the pair agrees.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.inputs import TokenInputs
from dinghai.objective.layout import Layout
from dinghai.objective.parameters import NoParameters, ParameterInfo, Parameters, describe
from dinghai.objective.ratio import RATIO_LEVELS, RatioLevel
from dinghai.objective.reduce import REDUCTIONS, ReductionName
from dinghai.objective.regions import no_bounds

RuleFunction = Callable[[TokenInputs, Any], Tensor]
ContextFunction = Callable[[TokenInputs, Any], dict[str, Tensor]]
Law = Literal["on-policy-reinforce"]  # that a rule may break, with a reason


@dataclass(frozen=True)
class Rule:
    """One objective of the family: its functions [N] -> [N], its parameters, its paper."""

    name: str
    title: str  # the paper's name for it
    paper: str  # where the formula stands
    formula: str  # the weight, in the code's symbols
    zero: str  # where the weight is exactly zero although A is not
    surrogate: RuleFunction  # J per token, maximised
    weight: RuleFunction  # coefficient of ∇log π_new in ∇J: the closed form of the surrogate's gradient
    region: RuleFunction = no_bounds  # `Region` per token
    parameters: type[Parameters] = NoParameters
    ratio_levels: tuple[RatioLevel, ...] = ("token",)  # that it is defined for; the paper's comes first
    reduction: ReductionName = "token-mean"  # the paper's
    context: ContextFunction | None = None
    """Scalars over the whole minibatch that the decision about each token needs, e.g. BAPO's bounds. None: it needs
    none, and then a split into micro-batches changes nothing."""
    whole_sequences: bool = False
    """Whether the decision about a token looks at the other tokens of its sequence, beyond what the ratio does, e.g. at
    a mean over them. If not, sequences may be cut where memory asks for it."""
    off: Mapping[str, float] | None = None
    """Parameters at which w = r·A, importance sampling without any clip; None: there are none."""
    breaks: Mapping[Law, str] = field(default_factory=lambda: MappingProxyType({}))
    """Laws of the family that the published rule does not obey, each with the reason. The proofs hold it to both."""

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


RULES: dict[str, Rule] = {}


def register_rule(
    name: str,
    *,
    weight: RuleFunction,
    title: str,
    paper: str,
    formula: str,
    zero: str,
    region: RuleFunction = no_bounds,
    parameters: type[Parameters] = NoParameters,
    ratio_levels: tuple[RatioLevel, ...] = ("token",),
    reduction: ReductionName = "token-mean",
    context: ContextFunction | None = None,
    whole_sequences: bool = False,
    off: Mapping[str, float] | None = None,
    breaks: Mapping[Law, str] | None = None,
) -> Callable[[RuleFunction], RuleFunction]:
    """Decorates the surrogate of a rule; the arguments are the fields of `Rule`. One function may serve several names.

    Raises:
        InputError: the name is taken, or a ratio level, the reduction or a parameter in `off` does not exist.
    """

    def register(surrogate: RuleFunction) -> RuleFunction:
        if name in RULES:
            raise InputError(f"there is a rule {name!r} already; choose another name")
        rule = Rule(
            name, title, paper, formula, zero, surrogate, weight, region, parameters, ratio_levels, reduction, context,
            whole_sequences, None if off is None else MappingProxyType(dict(off)), MappingProxyType(dict(breaks or {})),
        )  # fmt: skip
        for level in ratio_levels:
            if level not in RATIO_LEVELS:
                raise InputError(f"rule {name!r}: unknown ratio level {level!r}{nearest(level, list(RATIO_LEVELS))}")
        if reduction not in REDUCTIONS:
            raise InputError(f"rule {name!r}: unknown reduction {reduction!r}{nearest(reduction, list(REDUCTIONS))}")
        rule.parse(rule.off or {})
        RULES[name] = rule
        return surrogate

    return register


def find_rule(name: str) -> Rule:
    """The rule of a name.

    Raises:
        InputError: there is none; the message suggests the nearest name.
    """
    if name not in RULES:
        raise InputError(f"unknown rule {name!r}{nearest(name, list(RULES))} (one of your own: --rule-file FILE.py)")
    return RULES[name]


def guard_rails(
    rule: Rule, parameters: Parameters, ratio: RatioLevel, updates_per_batch: int | None = None
) -> list[str]:
    """What a person should hear before training with these values: a sentence each, with the usual value.

    updates_per_batch: optimiser steps on each batch of rollouts, where it is known.
    """
    sentences = _off_scale(rule, parameters, ratio) + parameters.warnings()
    acting = [info.name for info in rule.describe() if getattr(parameters, info.name) is not None]
    if updates_per_batch == 1 and acting and _is_reinforce_on_policy(rule, parameters):
        sentences.append(
            f"one update on each batch of rollouts: every ratio is 1, where {rule.name} is plain REINFORCE, so "
            f"{', '.join(acting)} can never act; raise the number of epochs or minibatches (2 to 16 updates are usual)"
        )
    return sentences


def _off_scale(rule: Rule, parameters: Parameters, ratio: RatioLevel) -> list[str]:
    """A sentence for each parameter whose value belongs to another ratio than the one in use, ten times off or more."""
    sentences = []
    for info in rule.describe():
        value = getattr(parameters, info.name)
        usual = info.usual if ratio == "token" else info.usual_sequence
        if value is None or usual is None or math.isinf(value) or usual[0] / 10 <= value <= usual[1] * 10:
            continue
        sentence = (
            f"{info.name} = {value:g} is on another scale than the ratio of a {ratio}, "
            f"for which {usual[0]:g} to {usual[1]:g} is usual ({info.unit})"
        )
        if info.unit == "offset from 1":
            sentence += ": it will hardly ever act" if value > usual[1] else ": it will act on nearly everything"
        sentences.append(sentence)
    return sentences


def _is_reinforce_on_policy(rule: Rule, parameters: Parameters) -> bool:
    """Whether w = A at r = 1, where every ratio of a batch's first update lies; a cap below 1, say, acts even there."""
    if "on-policy-reinforce" in rule.breaks:
        return False
    advantage_N = torch.tensor([1.0, -1.0], dtype=torch.float64)
    logp_N = torch.full_like(advantage_N, -1.0)
    layout = Layout.packed(logp_N.shape, torch.arange(3))
    x = TokenInputs.of(logp_N, logp_N, advantage_N, layout, rule.ratio_levels[0])
    if rule.context is not None:
        x = replace(x, context=rule.context(x, parameters))
    return torch.equal(rule.weight(x, parameters), advantage_N)


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the likeliest of the known names, and all of them."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" known: {', '.join(known)}"
