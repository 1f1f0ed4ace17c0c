"""The parts that a run is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dinghai.config.settings import TrainSettings
from dinghai.objective import PolicyLoss
from dinghai.policy.critic import Critic
from dinghai.policy.model import Policy
from dinghai.rollout.engine import Engine
from dinghai.tasks.base import Task
from dinghai.tasks.rewards import Rewards
from dinghai.trace import BackgroundWriter
from dinghai.train.kl_penalty import KLPenalty
from dinghai.train.learner import Learner
from dinghai.train.shortcuts import Shortcuts


@dataclass(frozen=True)
class Reference:
    """The weights that reinforcement learning started from: a frozen copy, or the policy without its adapters."""

    policy: Policy
    is_copy: bool

    @contextlib.contextmanager
    def weights(self) -> Iterator[None]:
        """Within it, `policy` computes with the reference weights."""
        if self.is_copy:
            yield
        else:
            with self.policy.without_adapters():
                yield


@dataclass(frozen=True)
class RunParts:
    """Everything that a training step uses."""

    settings: TrainSettings
    task: Task
    rewards: Rewards
    policy: Policy
    engine: Engine
    policy_loss: PolicyLoss
    shortcuts: Shortcuts
    reference: Reference | None
    kl_penalty: KLPenalty
    critic: Critic | None
    learners: list[Learner]
    trace: BackgroundWriter | None
