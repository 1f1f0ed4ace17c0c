"""The weights that completions are sampled with: the policy's own, or a copy of them in another precision."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dinghai.policy.model import Policy


class SamplingWeights:
    """`policy` in `dtype` (None: as it is). A copy is as old as the last `refresh`."""

    def __init__(self, policy: Policy, dtype: torch.dtype | None) -> None:
        self._source = self.policy = policy
        if dtype is not None and any(x.dtype != dtype for x in _weights(policy)):
            self.policy = policy.frozen_copy()
            # Only weights: buffers, such as the frequencies of rotary positions, keep the precision they are made for.
            for weight in _weights(self.policy):
                weight.data = weight.data.to(dtype)

    @property
    def is_copy(self) -> bool:
        return self.policy is not self._source

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over what the policy has learned."""
        if self.is_copy:
            for copied, weight in zip(_weights(self.policy), _weights(self._source), strict=True):
                copied.copy_(weight)


def _weights(policy: Policy) -> Iterator[Tensor]:
    return (p for p in policy.model.parameters() if p.is_floating_point())
