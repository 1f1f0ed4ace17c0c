"""The mathematics: pure functions on tensors. Imports torch and nothing of the trainer.

    from dinghai.objective import PolicyLoss

    policy_loss = PolicyLoss("grpo", eps_low=0.2, eps_high=0.28)
    out = policy_loss(logp_new=logp_new_BT, logp_old=logp_old_BT, advantage=advantage_B, mask=mask_BT)
    out.loss.backward()
    out.decision.region, out.decision.weight, out.stats.metrics()
"""

from dinghai.objective.advantage import gae, group_advantage, whiten
from dinghai.objective.decision import Decision, Effect, Region
from dinghai.objective.kl import KL_ESTIMATORS, kl_estimate
from dinghai.objective.layout import Layout
from dinghai.objective.policy_loss import PolicyLoss, PolicyLossOutput
from dinghai.objective.reduce import Normalizer, Reduction, reduce_tokens
from dinghai.objective.registry import RULES, Parameter, Rule, Tokens, get_rule, register
from dinghai.objective.stats import Stats
from dinghai.objective.value import ValueLossOutput, value_loss, value_metrics

__all__ = [
    "KL_ESTIMATORS",
    "RULES",
    "Decision",
    "Effect",
    "Layout",
    "Normalizer",
    "Parameter",
    "PolicyLoss",
    "PolicyLossOutput",
    "Reduction",
    "Region",
    "Rule",
    "Stats",
    "Tokens",
    "ValueLossOutput",
    "gae",
    "get_rule",
    "group_advantage",
    "kl_estimate",
    "reduce_tokens",
    "register",
    "value_loss",
    "value_metrics",
    "whiten",
]
