"""One step's batch of rollouts: completions, their rewards, and what is known of each token.

Shapes: B samples (completions), N all completion tokens of the batch, packed sample after sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dinghai.policy.scoring import TokenSequence
from dinghai.rollout.engine import Completion
from dinghai.tasks.base import Prompt
from dinghai.tasks.rewards import RewardTable


@dataclass
class Batch:
    """The samples of a step, group after group.

    groups:    number of each sample's prompt within the step
    reward_B:  what the advantage is made from: the rewards' weighted sum, with the overlong penalty
    in_loss_B: False for samples that the overlong filter leaves out of the loss
    """

    prompts: list[Prompt]
    groups: list[int]
    sequences: list[TokenSequence]
    completions: list[Completion]
    texts: list[str]
    rewards: RewardTable
    reward_B: Tensor
    in_loss_B: Tensor
    start_B: np.ndarray = field(init=False)
    length_B: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.length_B = np.array([len(s.completion_ids) for s in self.sequences])
        self.start_B = np.concatenate([[0], np.cumsum(self.length_B)[:-1]])

    @property
    def samples(self) -> int:
        return len(self.sequences)

    @property
    def tokens(self) -> int:
        return int(self.length_B.sum())

    @property
    def group_B(self) -> Tensor:
        return torch.tensor(self.groups)

    @property
    def logp_sampler_N(self) -> Tensor:
        """What the engine reported of each token, nats."""
        return torch.from_numpy(np.concatenate([c.logp_sampler for c in self.completions]))

    def token_index(self, chosen: Sequence[int]) -> Tensor:
        """Where the tokens of the chosen samples lie among all N, in their order."""
        return torch.from_numpy(self.start_B[self.sample_N(chosen)] + self.position_N(chosen))

    def cu_seqlens(self, chosen: Sequence[int]) -> Tensor:
        """[len(chosen) + 1] offsets of the chosen samples when packed."""
        return torch.from_numpy(np.concatenate([[0], np.cumsum(self._lengths(chosen))]))

    def sample_N(self, chosen: Sequence[int]) -> np.ndarray:
        """The sample that each token of the chosen samples belongs to."""
        return np.repeat(np.array(chosen, dtype=np.int64), self._lengths(chosen))

    def position_N(self, chosen: Sequence[int]) -> np.ndarray:
        """The place of each token within its completion."""
        length = self._lengths(chosen)
        return np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)

    def mask_N(self, chosen: Sequence[int]) -> Tensor:
        """True for tokens that count in the loss."""
        return self.in_loss_B[torch.from_numpy(self.sample_N(chosen))]

    def has_any(self, flag_N: Tensor) -> list[bool]:
        """Of each sample, whether a flag of the batch's tokens is set at one that counts in the loss."""
        every = range(self.samples)
        flagged_N = (flag_N & self.mask_N(every)).numpy()
        return (np.bincount(self.sample_N(every)[flagged_N], minlength=self.samples) > 0).tolist()

    def padded(self, value_N: Tensor) -> Tensor:
        """[N] -> [B, T], zeros behind each completion."""
        value_BT = value_N.new_zeros(self.samples, int(self.length_B.max()))
        value_BT[self.real_BT()] = value_N
        return value_BT

    def real_BT(self) -> Tensor:
        """True where [B, T] holds a token: `x_BT[batch.real_BT()]` packs it again."""
        return torch.arange(int(self.length_B.max()))[None] < torch.from_numpy(self.length_B)[:, None]

    def _lengths(self, chosen: Sequence[int]) -> np.ndarray:
        return self.length_B[np.array(chosen, dtype=np.int64)]


def minibatch_schedule(
    samples: int, epochs: int, minibatches: int, generator: torch.Generator
) -> list[tuple[int, int, list[int]]]:
    """(epoch, minibatch, samples) of each update: every epoch a new permutation, cut into nearly equal parts."""
    schedule = []
    for epoch in range(epochs):
        order = torch.randperm(samples, generator=generator)
        for minibatch, part in enumerate(order.tensor_split(minibatches)):
            schedule.append((epoch, minibatch, part.tolist()))
    return [(epoch, minibatch, part) for epoch, minibatch, part in schedule if part]
