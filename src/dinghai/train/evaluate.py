"""Held-out accuracy."""

from __future__ import annotations

import math

from dinghai.config.settings import TrainSettings
from dinghai.policy.model import Policy
from dinghai.rollout.engine import Engine
from dinghai.tasks.base import Task
from dinghai.train.collect import encode_prompts


def held_out_accuracy(policy: Policy, engine: Engine, task: Task, settings: TrainSettings) -> float:
    """Mean score by the task's verifier of the greedy completions of all held-out prompts."""
    prompts = list(task.held_out)
    max_new_tokens = settings.rollout.max_new_tokens
    completions = engine.greedy(encode_prompts(policy, prompts, max_new_tokens), max_new_tokens)
    scores = task.score_batch(prompts, [policy.text(c.token_ids) for c in completions])
    return math.fsum(scores) / len(scores)
