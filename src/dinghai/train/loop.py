"""The algorithm, from top to bottom: one training step of GRPO, or of PPO with a critic.

    prompts -> rollouts -> rewards -> old log-probs -> advantages
            -> for each epoch and minibatch: score -> policy loss -> backward -> clip the gradient's norm -> step
            -> record

Three policies, never confused: logp_sampler is what the engine reported, logp_old what the trainer's own weights give
before the first update on the batch, logp_new what they give now. The ratio of the clip is new/old.

Shapes: B samples, N tokens (of the batch, or of a micro-batch where a function says so).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dinghai.objective import KL_ESTIMATORS, Context, Normalizer, value_loss
from dinghai.policy.model import Policy
from dinghai.policy.scoring import TokenSequence, micro_batches, score
from dinghai.train.advantages import advantages_of_critic, advantages_without_critic
from dinghai.train.batch import Batch, minibatch_schedule
from dinghai.train.collect import collect
from dinghai.train.finite import require_finite, require_finite_tokens
from dinghai.train.record import StepRecord
from dinghai.train.run_parts import RunParts
from dinghai.train.seeds import derive_seed


@dataclass(frozen=True)
class Targets:
    """What the updates on a batch start from, for each of its N tokens; nothing of it changes during them."""

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


def train_step(run: RunParts, step: int, next_prompt: int) -> tuple[StepRecord, int]:
    """Step 1, 2, … of a run. Returns what happened and where the next prompt is."""
    collected = collect(run.policy, run.engine, run.task, run.rewards, run.settings, step, next_prompt)
    batch = collected.batch
    record = StepRecord(step, collected, run.trace, run.policy_loss.ratio)

    update = run.settings.update
    shuffle = torch.Generator().manual_seed(derive_seed(run.settings.run.seed, "shuffle", step))
    schedule = minibatch_schedule(batch.samples, update.epochs, update.minibatches, shuffle)
    first_pass = [samples for epoch, _, samples in schedule if epoch == 0]
    targets = prepare_targets(run, step, batch, first_pass)
    record.advantages(targets.advantage_N)

    for index, (epoch, minibatch, samples) in enumerate(schedule):
        record.begin_update(index, epoch, minibatch)
        if not update_on(run, step, index, batch, samples, targets, record):
            record.left_early = True
            break
    if run.reference is not None:
        record.beta = run.kl_penalty.beta
        run.kl_penalty.follow(record.kl_to_reference())
    return record, collected.next_prompt


def prepare_targets(run: RunParts, step: int, batch: Batch, minibatches: Sequence[Sequence[int]]) -> Targets:
    """Old log-probs, reference, values and advantages: all that is fixed before the first update.

    The log-probs are computed in the micro-batches of the first epoch, so the first update sees a ratio of exactly 1.
    """

    def log_probs(policy: Policy) -> Tensor:
        temperature = run.settings.rollout.temperature
        return for_each_token(
            run, batch, minibatches, lambda sequences: score(policy, sequences, temperature, one_pass=False)[0]
        )

    with torch.no_grad():
        logp_old_N = log_probs(run.policy)
        require_finite_tokens("logp_old", logp_old_N, batch, range(batch.samples), step)
        logp_ref_N = None
        if run.reference is not None:
            with run.reference.weights():
                logp_ref_N = log_probs(run.reference.policy)
            require_finite_tokens("logp_ref", logp_ref_N, batch, range(batch.samples), step)
        penalty_N = kl_in_reward(run, logp_old_N, logp_ref_N)
        value_N = return_N = None
        if run.critic is None:
            advantage_N = advantages_without_critic(run.settings, batch, penalty_N)
        else:
            assert run.settings.advantage.kind == "gae"
            value_N = for_each_token(run, batch, minibatches, run.critic.values)
            require_finite_tokens("the critic's value", value_N, batch, range(batch.samples), step)
            advantage_N, return_N = advantages_of_critic(run.settings.advantage, batch, value_N, penalty_N)
        require_finite_tokens("the advantage", advantage_N, batch, range(batch.samples), step)
        return Targets(batch.logp_sampler_N, logp_old_N, advantage_N, logp_ref_N, value_N, return_N)


def update_on(
    run: RunParts, step: int, index: int, batch: Batch, samples: list[int], targets: Targets, record: StepRecord
) -> bool:
    """One optimiser step on one minibatch. False: the policy is past target_kl, and no step is made any more."""
    settings = run.settings
    mask_N = batch.mask_N(samples)
    counts = Normalizer(tokens=int(mask_N.sum()), sequences=int(batch.in_loss_B[samples].sum()))
    parts = micro_batches(batch.sequences, samples, settings.update.micro_batch_tokens, run.policy.reading)
    context = context_of_minibatch(run, batch, samples, parts, targets)
    for chosen in parts:
        policy_loss = policy_loss_of(run, step, batch, chosen, targets, counts, context, record)
        policy_loss.backward()
        if run.critic is not None:
            value_loss_of(run, step, batch, chosen, targets, counts, record).backward()

    moved_too_far = record.kl_of_update() > 1.5 * (settings.update.target_kl or float("inf"))
    policy_waits = settings.advantage.kind == "gae" and step <= settings.advantage.critic_warmup
    norms = [learner.clip_gradient() for learner in run.learners]
    for learner, norm in zip(run.learners, norms, strict=True):
        require_finite(f"the gradient norm of the {learner.name}", norm, step, index, "lower the learning rate")
    for learner, norm in zip(run.learners, norms, strict=True):
        lr = learner.lr(step, settings.run.steps)
        record.learner_step(learner.name, lr, norm)
        if not (learner.name == "policy" and (moved_too_far or policy_waits)):
            learner.step(lr)
        learner.drop_gradient()
    return not moved_too_far


def context_of_minibatch(
    run: RunParts, batch: Batch, samples: list[int], parts: Sequence[list[int]], targets: Targets
) -> Context | None:
    """What a rule that looks at the whole minibatch has to know of it; the cost is one more forward pass.

    None for most rules, which decide token by token, and for a minibatch that is scored in one piece anyway.
    """
    if run.policy_loss.rule.context is None or len(parts) == 1:
        return None
    with torch.no_grad():
        logp_new_N = for_each_token(
            run,
            batch,
            [samples],
            lambda part: score(run.policy, part, run.settings.rollout.temperature, one_pass=False)[0],
        )
    here = batch.token_index(samples)
    return run.policy_loss.context(
        logp_new=logp_new_N[here],
        logp_old=targets.logp_old_N[here],
        advantage=targets.advantage_N[here],
        mask=batch.mask_N(samples),
        cu_seqlens=batch.cu_seqlens(samples),
    )


def policy_loss_of(
    run: RunParts,
    step: int,
    batch: Batch,
    chosen: list[int],
    targets: Targets,
    counts: Normalizer,
    context: Context | None,
    record: StepRecord,
) -> Tensor:
    """The policy's part of the minibatch loss that the chosen samples contribute; the parts add up exactly."""
    objective, temperature = run.settings.objective, run.settings.rollout.temperature
    sequences = [batch.sequences[i] for i in chosen]
    logp_new_N, entropy_N = score(run.policy, sequences, temperature, entropy_gradient=objective.entropy_bonus > 0)
    require_finite_tokens("logp_new", logp_new_N, batch, chosen, step)
    device = logp_new_N.device
    before, mask_N = targets.at(batch.token_index(chosen), device), batch.mask_N(chosen).to(device)
    out = run.policy_loss(
        logp_new=logp_new_N,
        logp_old=before.logp_old_N,
        advantage=before.advantage_N,
        mask=mask_N,
        cu_seqlens=batch.cu_seqlens(chosen).to(device),
        logp_ref=before.logp_ref_N,
        logp_sampler=None if run.policy_loss.correction is None else before.logp_sampler_N,
        normalizer=counts,
        context=context,
        beta=run.kl_penalty.beta if objective.kl.where == "loss" else 0.0,
    )
    require_finite_tokens("the gradient weight", out.decision.weight, batch, chosen, step)
    record.policy_tokens(chosen, logp_new_N, before.logp_old_N, entropy_N, out)
    if objective.entropy_bonus == 0:
        return out.loss
    return out.loss - objective.entropy_bonus * (entropy_N * mask_N).sum() / max(1, counts.tokens)


def value_loss_of(
    run: RunParts,
    step: int,
    batch: Batch,
    chosen: list[int],
    targets: Targets,
    counts: Normalizer,
    record: StepRecord,
) -> Tensor:
    """The critic's part of the minibatch loss that the chosen samples contribute."""
    settings = run.settings.advantage
    assert settings.kind == "gae"
    assert run.critic is not None
    value_N = run.critic.values([batch.sequences[i] for i in chosen])
    require_finite_tokens("the critic's value", value_N, batch, chosen, step)
    before = targets.at(batch.token_index(chosen), value_N.device)
    assert before.return_N is not None
    out = value_loss(
        value=value_N,
        value_old=before.value_old_N,
        returns=before.return_N,
        mask=batch.mask_N(chosen).to(value_N.device),
        cu_seqlens=batch.cu_seqlens(chosen).to(value_N.device),
        clip=settings.value_clip,
        normalizer=counts,
    )
    record.value_tokens(out)
    return out.loss


def for_each_token(
    run: RunParts, batch: Batch, minibatches: Sequence[Sequence[int]], compute: Callable[[list[TokenSequence]], Tensor]
) -> Tensor:
    """One number for each token of the batch, [N] on the CPU, in the same micro-batches as the updates will use."""
    x_N = torch.empty(batch.tokens)
    for samples in minibatches:
        budget = run.settings.update.micro_batch_tokens
        for chosen in micro_batches(batch.sequences, samples, budget, run.policy.reading):
            x_N[batch.token_index(chosen)] = compute([batch.sequences[i] for i in chosen]).cpu()
    return x_N


def kl_in_reward(run: RunParts, logp_old_N: Tensor, logp_ref_N: Tensor | None) -> Tensor | None:
    """beta times each token's KL to the reference, where it is to be taken off the reward."""
    kl = run.settings.objective.kl
    if logp_ref_N is None or kl.where != "reward":
        return None
    return run.kl_penalty.beta * KL_ESTIMATORS[kl.estimator].value(logp_old_N - logp_ref_N)
