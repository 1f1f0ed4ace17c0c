"""The mean reward of the group that each completion of a step belongs to.

Shapes: S completions of a step, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinghai.errors import RunFailed
from dinghai.trace import TraceReader


@dataclass(frozen=True, eq=False)
class GroupRewards:
    """For each recorded completion of a step the mean reward of its group."""

    step: int
    sample: np.ndarray  # [S] int32, ids in ascending order
    reward: np.ndarray  # [S] float64; NaN or infinite where a reward of the group is

    def row(self, sample_N: np.ndarray) -> np.ndarray:
        """Where each token's completion stands in `sample` and `reward`: [N] ids -> [N] int64.

        Raises:
            RunFailed: there is no such completion.
        """
        row_N = np.searchsorted(self.sample, sample_N)
        found_N = np.minimum(row_N, len(self.sample) - 1)
        if len(sample_N) and (not len(self.sample) or (self.sample[found_N] != sample_N).any()):
            raise RunFailed(
                f"the trace of step {self.step} is damaged: it has tokens of a completion that its samples do not "
                "list. Remove that step's folder"
            )
        return found_N


def group_rewards(reader: TraceReader, step: int) -> GroupRewards:
    """Read the rewards of a step's completions.

    Raises:
        InputError: there is no such step.
        RunFailed: a file is damaged.
    """
    table = reader.samples(step, ["sample", "group", "reward"])
    sample_S, group_S = table["sample"].to_numpy(), table["group"].to_numpy()
    _, member_S = np.unique(group_S, return_inverse=True)
    total_G = np.bincount(member_S, weights=table["reward"].to_numpy())
    mean_G = total_G / np.bincount(member_S)
    order = np.argsort(sample_S, kind="stable")
    return GroupRewards(step, sample_S[order], mean_G[member_S][order])
