"""Objectives that a replay compares with a run's own: another epsilon, another rule, another rollout correction.

A candidate keeps what it does not change: the run's parameters where the rule is the run's, its rollout correction, and
always its reduction, so that a comparison shows what the rule does to each token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinghai.config.recipe_table import RECIPES
from dinghai.lens.replay import caught_warnings
from dinghai.objective import PolicyLoss, find_rule
from dinghai.objective.correction import Combination, RolloutCorrection
from dinghai.objective.parameters import ParameterInfo
from dinghai.objective.ratio import RatioLevel

_BOUNDS = (("eps_low", "eps_high"), ("delta_low", "delta_high"))  # names under which rules have a band
OFFSET = "offset from 1"
_EPSILON = ("objective.eps_low", "objective.eps_high")

# Recipes whose ε is a mark on the scale of a ratio, and rules to set beside a run's own.
_MARKED = {"token": ("ppo", "dapo", "r1"), "sequence": ("gspo", "luspo"), "sequence-token": ("gspo", "luspo")}
_OTHER_RULES = ("importance_sampling", "dual_clip", "dapo", "cispo", "gspo", "sapo", "dppo_tv", "spo", "grpo")


@dataclass(frozen=True)
class Candidate:
    """An objective to replay."""

    key: str  # short and unique among its like, e.g. "dapo" or "eps_high=0.4"
    label: str  # for a table or a legend
    policy_loss: PolicyLoss
    warnings: tuple[str, ...] = ()  # what the objective says of its values

    @property
    def rule(self) -> str:
        return self.policy_loss.rule.name

    @property
    def looks_at_minibatch(self) -> bool:
        """Whether a decision depends on the other sequences of the minibatch."""
        return self.policy_loss.rule.context is not None


@dataclass(frozen=True)
class Mark:
    """Bounds that a paper uses."""

    name: str
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Bounds:
    """The pair of parameters that bound a rule's band, as it is set."""

    low_name: str
    high_name: str
    low: ParameterInfo
    high: ParameterInfo
    low_value: float
    high_value: float

    @property
    def values(self) -> tuple[float, float]:
        return self.low_value, self.high_value

    @property
    def infos(self) -> tuple[ParameterInfo, ParameterInfo]:
        return self.low, self.high

    @property
    def unit(self) -> str:
        return self.high.unit


def own_candidate(own: PolicyLoss) -> Candidate:
    """The run's own objective."""
    return Candidate("own", label_of(own), own)


def candidate(
    own: PolicyLoss,
    parameters: Mapping[str, float | None] | None = None,
    *,
    rule: str | None = None,
    ratio: RatioLevel | None = None,
    correction: Sequence[RolloutCorrection] | None = None,
    key: str | None = None,
) -> Candidate:
    """The run's objective with something changed.

    Args:
        parameters: of the rule, over those it would have.
        rule: its parameters are the run's where it is the run's rule, else the defaults of its paper.
        ratio: by default the run's with the run's rule, else that of the rule's paper.
        correction: in place of the run's; empty for none.

    Raises:
        InputError: a name is unknown, or a value out of range.
    """
    name = rule or own.rule.name
    is_own = name == own.rule.name
    if ratio is None:
        ratio = own.ratio if is_own else find_rule(name).ratio_levels[0]
    given: dict[str, Any] = dict(parameters or {})
    if is_own:
        given = dataclasses.asdict(own.parameters) | given
    with caught_warnings() as said:
        policy_loss = PolicyLoss(name, ratio=ratio, correction=_combined(correction), **given)
    policy_loss.reduction = own.reduction
    if correction is None:
        policy_loss.correction = own.correction
    return Candidate(key or name, label_of(policy_loss), policy_loss, tuple(said))


def _combined(corrections: Sequence[RolloutCorrection] | None) -> RolloutCorrection | None:
    if not corrections:
        return None
    return Combination(tuple(corrections)) if len(corrections) > 1 else corrections[0]


def label_of(policy_loss: PolicyLoss) -> str:
    """The rule, its ratio where it is not its paper's, its parameters: grpo eps_low=0.2 eps_high=0.28."""
    rule = policy_loss.rule
    words = [rule.name]
    if policy_loss.ratio != rule.ratio_levels[0]:
        words.append(f"ratio={policy_loss.ratio}")
    values = dataclasses.asdict(policy_loss.parameters)
    words += [f"{name}={value:g}" for name, value in values.items() if value is not None]
    return " ".join(words)


def bounds_of(policy_loss: PolicyLoss) -> Bounds | None:
    """The lower and the upper bound of a rule that has such a pair; None for the others."""
    infos = {info.name: info for info in policy_loss.rule.describe()}
    for low, high in _BOUNDS:
        if low in infos and high in infos:
            low_value, high_value = (float(getattr(policy_loss.parameters, name)) for name in (low, high))
            return Bounds(low, high, infos[low], infos[high], low_value, high_value)
    return None


def marks_for(policy_loss: PolicyLoss) -> list[Mark]:
    """The bounds of papers whose unit is that of the objective's: offsets from 1 of the same ratio, else its rule's."""
    bounds = bounds_of(policy_loss)
    if bounds is None:
        return []
    if bounds.unit != OFFSET:
        low, high = bounds.low.default, bounds.high.default
        if low is None or high is None:
            return []
        return [Mark(policy_loss.rule.title, low, high, policy_loss.rule.paper)]
    marks = []
    for name in _MARKED.get(policy_loss.ratio, ()):
        recipe = RECIPES[name]
        values = {choice.key: float(choice.value) for choice in recipe.settings if choice.key in _EPSILON}
        low, high = (values[key] for key in _EPSILON)
        marks.append(Mark(recipe.title, low, high, recipe.paper))
    return marks


def papers_bounds(own: PolicyLoss) -> list[Candidate]:
    """The run's rule with the bounds of papers, but for its own."""
    bounds = bounds_of(own)
    found = []
    for mark in marks_for(own) if bounds else []:
        assert bounds is not None
        if (mark.low, mark.high) == bounds.values:
            continue
        if not (bounds.low.admits(mark.low) and bounds.high.admits(mark.high)):
            continue
        changed: dict[str, float | None] = {bounds.low_name: mark.low, bounds.high_name: mark.high}
        key = f"{bounds.low_name}={mark.low:g},{bounds.high_name}={mark.high:g}"
        one = candidate(own, changed, key=key)
        found.append(dataclasses.replace(one, label=f"{one.label} ({mark.name})", warnings=()))
    return found


def other_rules(own: PolicyLoss, at_most: int = 8) -> list[Candidate]:
    """Rules of other kinds with the parameters of their papers, but for the run's own, or one that is the same."""
    found = []
    for name in _OTHER_RULES:
        one = candidate(own, rule=name)
        if name != own.rule.name and not _same(one.policy_loss, own):
            found.append(one)
    return found[:at_most]


def _same(one: PolicyLoss, other: PolicyLoss) -> bool:
    """Whether two names stand for one rule with the same parameters."""
    return (
        one.rule.weight is other.rule.weight
        and one.ratio == other.ratio
        and dataclasses.asdict(one.parameters) == dataclasses.asdict(other.parameters)
    )


def default_candidates(own: PolicyLoss) -> list[Candidate]:
    """What a replay shows when nothing is asked for: the bounds of papers, then other rules; none of them twice."""
    found = papers_bounds(own)
    for one in other_rules(own):
        if not any(_same(one.policy_loss, other.policy_loss) for other in found):
            found.append(one)
    return found
