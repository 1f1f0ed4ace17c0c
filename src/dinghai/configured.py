"""The objective that the settings of a run describe: for the trainer, and for whoever replays what it decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dinghai.config.settings import ObjectiveSettings, TrainSettings
from dinghai.objective import PolicyLoss, find_rule
from dinghai.objective.correction import Combination, RolloutCorrection
from dinghai.objective.correction import build_correction as find_correction


def build_policy_loss(settings: TrainSettings) -> PolicyLoss:
    """The policy loss that the settings describe. A KL that is taken off the reward is measured, but not added."""
    objective = settings.objective
    in_loss = objective.kl.where == "loss"
    reduction = objective.reduction or find_rule(objective.rule).reduction
    return PolicyLoss(
        objective.rule,
        reduction=reduction,
        ratio=objective.ratio,
        kl=objective.kl.estimator if objective.kl.beta > 0 else None,
        kl_correction=objective.kl.correction,
        beta=objective.kl.beta if in_loss else 0.0,
        max_length=settings.rollout.max_new_tokens if reduction == "seq-mean-token-sum-norm" else None,
        correction=build_correction(objective.corrections),
        updates_per_batch=settings.updates_per_batch,
        **rule_parameters(objective),
    )


def rule_parameters(objective: ObjectiveSettings) -> dict[str, Any]:
    """The rule's parameters that were set, under either of their names; the others have the rule's defaults."""
    named = {"eps_low": objective.eps_low, "eps_high": objective.eps_high, "dual_clip": objective.dual_clip}
    return objective.parameters | {name: value for name, value in named.items() if value is not None}


def build_correction(named: Mapping[str, Mapping[str, float]]) -> RolloutCorrection | None:
    """The rollout correction that the settings describe; several act together."""
    corrections = [find_correction(name, **parameters) for name, parameters in named.items()]
    return Combination(tuple(corrections)) if len(corrections) > 1 else next(iter(corrections), None)


def with_resolved_objective(settings: TrainSettings, policy_loss: PolicyLoss) -> TrainSettings:
    """The settings with the rule's ratio, reduction and every parameter written out, as a run keeps them."""
    resolved = {
        "ratio": policy_loss.ratio,
        "reduction": policy_loss.reduction.name,
        "parameters": dataclasses.asdict(policy_loss.parameters),
        "corrections": {
            name: dataclasses.asdict(find_correction(name, **parameters))
            for name, parameters in settings.objective.corrections.items()
        },
        **dict.fromkeys(("eps_low", "eps_high", "dual_clip")),
    }
    return settings.model_copy(update={"objective": settings.objective.model_copy(update=resolved)})
