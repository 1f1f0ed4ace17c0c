"""Which shortcuts the updates of a run may take, decided once, with a sentence for each that they may not.

A shortcut spares work and gives the same result to rounding, so it is taken wherever that holds. How sequences are read
(packed, prompts shared) depends on the model and is decided in `policy.reading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinghai.config.settings import TrainSettings
from dinghai.objective import PolicyLoss
from dinghai.policy.model import Policy
from dinghai.rollout.engine import Engine
from dinghai.rollout.local import LocalEngine

OldLogProbs = Literal["score", "first-update", "engine"]


@dataclass(frozen=True)
class Shortcuts:
    """What is spared.

    one_pass_head:  the head's log-probs and both gradients come from one pass over its logits
    skip_no_signal: samples without any advantage are not scored
    old_log_probs:  where log π_old comes from: scored for all samples ("score"), or for all but those of the first
                    update, which take what that update scores ("first-update"), or for those others, what the engine
                    sampled with ("engine")
    notes:          a sentence for each shortcut that was asked for and is not taken
    """

    one_pass_head: bool
    skip_no_signal: bool
    old_log_probs: OldLogProbs
    notes: tuple[str, ...] = ()

    @property
    def first_update_scores_itself(self) -> bool:
        """Whether the samples of the first update have r = 1 by taking their log π_new as log π_old."""
        return self.old_log_probs != "score"


def choose_shortcuts(settings: TrainSettings, policy_loss: PolicyLoss, policy: Policy, engine: Engine) -> Shortcuts:
    """The shortcuts of `update.shortcuts` that the rest of the settings, the rule, model and engine allow."""
    wanted = settings.update.shortcuts
    notes = []
    many = _head_is_more_than_a_matrix(policy) if wanted.one_pass_head else None
    if many:
        notes.append(f"gradients of the head are left to autograd: {many}")
    needed = _what_needs_scores_without_signal(settings, policy_loss) if wanted.skip_no_signal else None
    if needed:
        notes.append(f"samples without signal are scored as well: {needed}")
    old: OldLogProbs = wanted.old_log_probs
    other = _engine_is_another_policy(settings, engine) if old == "engine" else None
    if other:
        notes.append(f"old log-probs are not taken from the engine: {other}")
        old = "first-update"
    if old == "first-update" and _kl_is_in_reward(settings):
        notes.append("old log-probs are scored before the updates: the KL in the reward needs them")
        old = "score"
    return Shortcuts(
        one_pass_head=wanted.one_pass_head and policy.head_weight is not None,
        skip_no_signal=wanted.skip_no_signal and needed is None,
        old_log_probs=old,
        notes=tuple(notes),
    )


def _head_is_more_than_a_matrix(policy: Policy) -> str | None:
    """Why the head cannot be done in one pass. One that is not even a layer by itself is told of elsewhere."""
    if policy.head_weight is not None or not policy.factored:
        return None
    return "it is more than one matrix (it has a bias, or an adapter)"


def _what_needs_scores_without_signal(settings: TrainSettings, policy_loss: PolicyLoss) -> str | None:
    """What acts on a sample whose advantages are all 0, if anything does."""
    objective = settings.objective
    if objective.kl.beta > 0:
        return "the KL to the reference needs them"
    if objective.entropy_bonus > 0:
        return "the entropy bonus acts on them"
    if settings.advantage.kind == "gae":
        return "the critic learns from them"
    if policy_loss.rule.context is not None:
        return f"the rule {policy_loss.rule.name} looks at the whole minibatch"
    if not policy_loss.is_silent_without_advantage():
        return f"the rule {policy_loss.rule.name} acts on tokens without an advantage"
    return None


def _engine_is_another_policy(settings: TrainSettings, engine: Engine) -> str | None:
    """Why the log-probs that the engine sampled with are not those of the weights that are trained."""
    rollout = settings.rollout
    if not isinstance(engine, LocalEngine):
        return "it does not run on the trainer's own weights"
    if rollout.dtype is not None and rollout.dtype != settings.model.dtype:
        return f"it samples with weights in {rollout.dtype}, and those that are trained are in {settings.model.dtype}"
    if rollout.top_p < 1 or rollout.top_k > 0:
        return "top-p or top-k sampling draws from a truncated distribution"
    if settings.objective.corrections:
        return "the rollout correction compares the two"
    return None


def _kl_is_in_reward(settings: TrainSettings) -> bool:
    return settings.objective.kl.beta > 0 and settings.objective.kl.where == "reward"
