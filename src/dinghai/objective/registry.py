"""Rules by name. A rule is a function pair, what its parameters mean, and where it comes from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective.layout import Layout


@dataclass(frozen=True)
class Tokens:
    """What a rule may look at, one value a token ([B, T] or [N]), zeros where masked; gradients are the caller's.

    ratio is exp(log_ratio), of the token or of its sequence.
    """

    log_ratio: Tensor
    ratio: Tensor
    advantage: Tensor
    logp_new: Tensor
    logp_old: Tensor
    layout: Layout


@dataclass(frozen=True)
class Parameter:
    """A number that a rule takes. `default` None means the part of the rule it belongs to is off."""

    default: float | None
    unit: str
    usual: str
    meaning: str
    above: float | None = None
    below: float | None = None


Parameters = Mapping[str, float | None]


@dataclass(frozen=True)
class Rule:
    """J(token) and its gradient's coefficient.

    surrogate: the value that is maximised, one a token
    weight:    w with grad J = w * grad log pi_new(token), in closed form; autograd of the surrogate proves it
    region:    where in the plane of ratio and advantage each token lies (`decision.Region`)
    in_band:   whether the ratio lies within the rule's bounds, whatever the sign of the advantage
    """

    name: str
    surrogate: Callable[[Tokens, Parameters], Tensor]
    weight: Callable[[Tokens, Parameters], Tensor]
    region: Callable[[Tokens, Parameters], Tensor]
    in_band: Callable[[Tokens, Parameters], Tensor]
    parameters: Mapping[str, Parameter]
    source: str


RULES: dict[str, Rule] = {}


def register(rule: Rule) -> Rule:
    """Adds a rule; a name can be taken once."""
    if rule.name in RULES:
        raise InputError(f"there is a rule {rule.name!r} already: choose another name")
    RULES[rule.name] = rule
    return rule


def get_rule(name: str) -> Rule:
    """The rule of that name; InputError names the nearest one."""
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(RULES))}"
        raise InputError(f"there is no rule {name!r}; {hint}")
    return RULES[name]


def check_parameters(rule: Rule, given: Mapping[str, float | None]) -> dict[str, float | None]:
    """The rule's parameters with defaults filled in; InputError for an unknown one or a value out of range."""
    for name, value in given.items():
        if name not in rule.parameters:
            near = difflib.get_close_matches(name, rule.parameters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(rule.parameters)}"
            raise InputError(f"rule {rule.name!r} has no parameter {name!r}; {hint}")
        parameter = rule.parameters[name]
        if value is None:
            if parameter.default is not None:
                raise InputError(f"{name} of rule {rule.name!r} must be a number ({parameter.usual} is usual)")
            continue
        low, high = parameter.above, parameter.below
        if not (low is None or value > low) or not (high is None or value < high) or value != value:
            bounds = " and ".join(
                ([f"above {low:g}"] if low is not None else []) + ([f"below {high:g}"] if high is not None else [])
            )
            raise InputError(f"{name} = {value:g} of rule {rule.name!r} must be {bounds}: {parameter.meaning}")
    return {name: given.get(name, parameter.default) for name, parameter in rule.parameters.items()}
