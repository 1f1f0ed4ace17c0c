"""What the updates on a batch start from: log-probs of the policies before them, values, advantages.

Shapes: B samples, N all completion tokens of the batch, packed sample after sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dinghai.objective import KL_ESTIMATORS
from dinghai.policy.model import Policy
from dinghai.policy.scoring import TokenSequence, micro_batches, score
from dinghai.train.batch import Batch
from dinghai.train.run_parts import RunParts


@dataclass(frozen=True)
class Targets:
    """Numbers of each of the N tokens that nothing changes during the updates, on the CPU.

    logp_old_N is NaN where it is not known yet: for samples of the first update, until that has scored them, and for
    samples that are never scored.
    """

    logp_sampler_N: Tensor
    logp_old_N: Tensor
    advantage_N: Tensor
    logp_ref_N: Tensor | None = None  # the reference policy's, where there is one
    value_old_N: Tensor | None = None  # the critic's, where there is one
    return_N: Tensor | None = None

    def at(self, here: Tensor, device: torch.device) -> Targets:
        """Those of a micro-batch's tokens, on its device."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x[here].to(device) for name, x in columns.items() if x is not None})

    def part(self, rows: slice) -> Targets:
        """Those of neighbouring tokens."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x[rows] for name, x in columns.items() if x is not None})


def log_probs(run: RunParts, policy: Policy, batch: Batch, minibatches: Sequence[Sequence[int]]) -> Tensor:
    """What a policy gives to the tokens of some samples, bit for bit as an update scores them; NaN for the others."""

    def compute(sequences: list[TokenSequence]) -> Tensor:
        return score(
            policy,
            sequences,
            run.settings.rollout.temperature,
            one_pass=run.shortcuts.one_pass_head,
            whole_sequences=not run.policy_loss.tokenwise,
        )[0]

    return for_each_token(run, batch, minibatches, compute)


def for_each_token(
    run: RunParts, batch: Batch, minibatches: Sequence[Sequence[int]], compute: Callable[[list[TokenSequence]], Tensor]
) -> Tensor:
    """One number for each token of the minibatches' samples, [N] on the CPU, in the micro-batches of the updates."""
    x_N = torch.full((batch.tokens,), math.nan)
    for samples in minibatches:
        budget = run.settings.update.micro_batch_tokens
        for chosen in micro_batches(batch.sequences, samples, budget, run.policy.reading):
            x_N[batch.token_index(chosen)] = compute([batch.sequences[i] for i in chosen]).cpu()
    return x_N


def kl_in_reward(run: RunParts, logp_old_N: Tensor, logp_ref_N: Tensor) -> Tensor:
    """beta times each token's KL to the reference, which is taken off the reward."""
    kl = run.settings.objective.kl
    return run.kl_penalty.beta * KL_ESTIMATORS[kl.estimator].value(logp_old_N - logp_ref_N)
