"""What a rollout engine is: prompts in, sampled completions with their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dinghai.config.settings import RolloutSettings


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: logits / temperature, then the top-k, then the nucleus of mass top_p, renormalised."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 32

    @classmethod
    def from_settings(cls, rollout: RolloutSettings) -> Sampling:
        return cls(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_new_tokens)

    @property
    def is_truncated(self) -> bool:
        """Whether tokens are drawn from another distribution than the policy's own."""
        return self.top_p < 1.0 or self.top_k > 0


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    token_ids:    the tokens, with the end token if it was reached
    logp_sampler: float32, their log-probabilities under the distribution they were drawn from, nats
    finished:     whether the end token was reached within max_new_tokens
    """

    token_ids: list[int]
    logp_sampler: np.ndarray
    finished: bool


class Engine(Protocol):
    """Samples completions from the current policy."""

    def generate(
        self, prompts: Sequence[list[int]], group_size: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        """`group_size` completions of each prompt; the same seed gives the same tokens."""
        ...

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Completion]:
        """The likeliest token at each step, one completion a prompt; logp_sampler is 0 (the choice is certain)."""
        ...
