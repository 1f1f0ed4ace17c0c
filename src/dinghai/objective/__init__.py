"""The mathematics of the policy update: pure functions on tensors, torch only, no I/O."""

from dinghai.objective.advantage import gae, group_advantage, whiten
from dinghai.objective.decision import Decision, Effect, Region
from dinghai.objective.kl import KL_ESTIMATORS, KLEstimator
from dinghai.objective.layout import Layout
from dinghai.objective.policy_loss import PolicyLoss, PolicyLossOutput
from dinghai.objective.reduce import REDUCTIONS, Normalizer, Reduction
from dinghai.objective.registry import RULES, Rule, find_rule
from dinghai.objective.stats import Stats
from dinghai.objective.value import ValueLossOutput, ValueStats, value_loss

__all__ = [
    "KL_ESTIMATORS",
    "REDUCTIONS",
    "RULES",
    "Decision",
    "Effect",
    "KLEstimator",
    "Layout",
    "Normalizer",
    "PolicyLoss",
    "PolicyLossOutput",
    "Reduction",
    "Region",
    "Rule",
    "Stats",
    "ValueLossOutput",
    "ValueStats",
    "find_rule",
    "gae",
    "group_advantage",
    "value_loss",
    "whiten",
]
