"""Builds the parts of a run from its settings. Nothing is written before all of them stand."""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from dinghai.config.settings import TrainSettings
from dinghai.configured import build_policy_loss, with_resolved_objective
from dinghai.errors import InputError
from dinghai.objective import Effect, Region
from dinghai.policy.critic import Critic
from dinghai.policy.model import DTYPES, Policy, load_policy
from dinghai.policy.reading import choose_reading
from dinghai.rollout.engine import Engine
from dinghai.rollout.local import LocalEngine
from dinghai.tasks import build_task
from dinghai.tasks.base import Task
from dinghai.tasks.rewards import Rewards, load_rewards
from dinghai.trace import BackgroundWriter, TraceWriter
from dinghai.train.collect import encode_prompts
from dinghai.train.kl_penalty import KLPenalty
from dinghai.train.learner import Learner
from dinghai.train.run_parts import Reference, RunParts
from dinghai.train.seeds import derive_seed
from dinghai.train.shortcuts import choose_shortcuts

# How many training prompts are looked at before anything is written: enough for most files, and done in a moment. A
# longer one further on stops the run when it is drawn.
CHECKED_PROMPTS = 2048


class Beginning:
    """What a run has before its cold start: task, rewards, policy and engine."""

    def __init__(
        self, settings: TrainSettings, allowed_rewards: Collection[str], rule_code: Collection[str] = ()
    ) -> None:
        self.rule_code = rule_code
        seed_everything(settings.run.seed, "begin", 0)
        self.task: Task = build_task(settings.task, settings.run.seed)
        self.rewards: Rewards = load_rewards(settings.rewards, self.task, allowed_rewards)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.policy_loss = build_policy_loss(settings)
        self.warnings = [str(w.message) for w in caught]
        self.settings = settings = with_resolved_objective(settings, self.policy_loss)
        set_threads(settings)
        self.policy: Policy = load_policy(settings.model, derive_seed(settings.run.seed, "model"))
        shortcuts = settings.update.shortcuts
        self.policy.reading, notes = choose_reading(self.policy, shortcuts.packing, shortcuts.shared_prompts)
        dtype = None if settings.rollout.dtype is None else DTYPES[settings.rollout.dtype]
        engine = LocalEngine(self.policy, settings.rollout.batch_size, dtype)
        self.engine: Engine = engine
        self.shortcuts = choose_shortcuts(settings, self.policy_loss, self.policy, self.engine)
        self.notes = [*notes, *self.shortcuts.notes, *engine.notes]
        # Refuses prompts that are too long, and tasks without demonstrations, before the first step.
        drawn = min(settings.run.steps * settings.rollout.prompts, CHECKED_PROMPTS)
        prompts = [*self.task.held_out, *map(self.task.train_prompt, range(drawn))]
        encode_prompts(self.policy, prompts, settings.rollout.max_new_tokens)
        if settings.cold_start.steps and self.task.demonstration(0) is None:
            raise InputError(
                f"cold_start.steps is {settings.cold_start.steps}, but the task {self.task.name!r} has no "
                "demonstrations to learn from: set it to 0"
            )

    def parts(self, folder: Path) -> RunParts:
        """Adds what is built upon the policy as it is now, after the cold start: reference, critic, optimisers."""
        settings, policy = self.settings, self.policy
        seed_everything(settings.run.seed, "parts", 0)
        reference = None
        if settings.objective.kl.beta > 0:
            # Without its adapters a policy is what it was before the cold start, not after it.
            is_copy = not policy.has_adapters or settings.cold_start.steps > 0
            reference = Reference(policy.frozen_copy() if is_copy else policy, is_copy)
        learners = [Learner.of("policy", policy.trainable(), settings.update.lr, settings.update)]
        critic = None
        if settings.advantage.kind == "gae":
            critic = Critic(policy)
            learners.append(Learner.of("critic", critic.trainable(), settings.advantage.critic_lr, settings.update))
        trace = None
        if settings.trace.enabled:
            writer = TraceWriter(
                folder / "trace",
                settings.trace.tokens,
                settings.run.seed,
                regions={int(r): r.name.lower() for r in Region},
                effects={int(e): e.name.lower() for e in Effect},
            )
            trace = BackgroundWriter(writer)
        return RunParts(
            settings=settings,
            task=self.task,
            rewards=self.rewards,
            policy=policy,
            engine=self.engine,
            policy_loss=self.policy_loss,
            shortcuts=self.shortcuts,
            reference=reference,
            kl_penalty=KLPenalty.of(settings.objective.kl),
            critic=critic,
            learners=learners,
            trace=trace,
        )


def set_threads(settings: TrainSettings) -> None:
    """CPU threads of torch; the default for the built-in model is one, since more would only wait for each other."""
    if settings.model.threads is not None:
        torch.set_num_threads(settings.model.threads)


def seed_everything(seed: int, purpose: str, step: int) -> None:
    """Sets the global generators, which reward functions and libraries may use, from the seed and the step alone."""
    derived = derive_seed(seed, purpose, step)
    random.seed(derived)
    np.random.seed(derived % 2**32)  # noqa: NPY002  (it is the global one that others use)
    torch.manual_seed(derived)
