"""The algorithm, from top to bottom: one training step of GRPO, or of PPO with a critic.

    prompts -> rollouts -> rewards -> advantages -> old log-probs
            -> for each epoch and minibatch: score -> policy loss -> backward -> clip the gradient's norm -> step
            -> record

Three policies, never confused: logp_sampler is what the engine reported, logp_old what the trainer's own weights give
before the first update on the batch, logp_new what they give now. The ratio of the clip is new/old.

What `run.shortcuts` spares: samples of which no token has an advantage are not scored, and the samples of the first
update take its log-probs as their old ones. Neither changes a number.

Shapes: B samples, N tokens (of the batch, or of a micro-batch where a function says so), C tokens of a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinghai.objective import Context, Layout, Normalizer, PolicyLossOutput, value_loss
from dinghai.policy.scoring import micro_batches
from dinghai.train.advantages import advantages_of_critic, advantages_without_critic
from dinghai.train.backward import backward_by_autograd, backward_in_one_pass
from dinghai.train.batch import Batch, minibatch_schedule
from dinghai.train.collect import collect
from dinghai.train.finite import require_finite, require_finite_tokens
from dinghai.train.record import StepRecord
from dinghai.train.run_parts import RunParts
from dinghai.train.seeds import derive_seed
from dinghai.train.targets import Targets, for_each_token, kl_in_reward, log_probs


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
        kl = record.kl_to_reference()
        if kl is not None:
            run.kl_penalty.follow(kl)
    return record, collected.next_prompt


@torch.no_grad()
def prepare_targets(run: RunParts, step: int, batch: Batch, minibatches: Sequence[list[int]]) -> Targets:
    """Reference, values, advantages and old log-probs: all that is fixed before the first update.

    Log-probs are computed in the micro-batches of the first epoch, so the first update sees a ratio of exactly 1.
    """
    every = range(batch.samples)
    logp_old_N = logp_ref_N = penalty_N = value_N = return_N = None
    if run.reference is not None:
        with run.reference.weights():
            logp_ref_N = log_probs(run, run.reference.policy, batch, minibatches)
        require_finite_tokens("logp_ref", logp_ref_N, batch, every, step)
        if run.settings.objective.kl.where == "reward":
            logp_old_N = old_log_probs(run, step, batch, minibatches)
            penalty_N = kl_in_reward(run, logp_old_N, logp_ref_N)
    if run.critic is None:
        advantage_N = advantages_without_critic(run.settings, batch, penalty_N)
    else:
        assert run.settings.advantage.kind == "gae"
        value_N = for_each_token(run, batch, minibatches, run.critic.values)
        require_finite_tokens("the critic's value", value_N, batch, every, step)
        advantage_N, return_N = advantages_of_critic(run.settings.advantage, batch, value_N, penalty_N)
    require_finite_tokens("the advantage", advantage_N, batch, every, step)
    if logp_old_N is None:
        scored = [samples_to_score(run, batch, samples, advantage_N) for samples in minibatches]
        logp_old_N = old_log_probs(run, step, batch, scored)
    return Targets(batch.logp_sampler_N, logp_old_N, advantage_N, logp_ref_N, value_N, return_N)


def old_log_probs(run: RunParts, step: int, batch: Batch, minibatches: Sequence[list[int]]) -> Tensor:
    """log π_old of the minibatches' samples, [N]; NaN for those that the first update is to score by itself."""
    if run.shortcuts.old_log_probs == "engine":
        return batch.logp_sampler_N.clone()
    asked = minibatches[1:] if run.shortcuts.first_update_scores_itself else minibatches
    logp_old_N = log_probs(run, run.policy, batch, asked)
    for samples in asked:
        require_finite_tokens("logp_old", logp_old_N[batch.token_index(samples)], batch, samples, step)
    return logp_old_N


def samples_to_score(run: RunParts, batch: Batch, samples: list[int], advantage_N: Tensor) -> list[int]:
    """Those that the policy has to read: all, or the ones with an advantage at a token that counts in the loss."""
    if not run.shortcuts.skip_no_signal:
        return samples
    signal_B = batch.has_any(advantage_N != 0)
    return [i for i in samples if signal_B[i]]


def update_on(
    run: RunParts, step: int, index: int, batch: Batch, samples: list[int], targets: Targets, record: StepRecord
) -> bool:
    """One optimiser step on one minibatch. False: the policy is past target_kl, and no step is made any more."""
    settings = run.settings
    mask_N = batch.mask_N(samples)
    counts = Normalizer(tokens=int(mask_N.sum()), sequences=int(batch.in_loss_B[samples].sum()))
    scored = samples_to_score(run, batch, samples, targets.advantage_N)
    parts = micro_batches(batch.sequences, scored, settings.update.micro_batch_tokens, run.policy.reading)
    is_first = index == 0 and run.shortcuts.first_update_scores_itself
    context = context_of_minibatch(run, batch, scored, parts, targets, is_first)
    for chosen in parts:
        policy_backward(run, step, batch, chosen, targets, is_first, counts, context, record)
        if run.critic is not None:
            value_loss_of(run, step, batch, chosen, targets, counts, record).backward()
    if len(scored) < len(samples):
        skipped = sorted(set(samples) - set(scored))
        mask_N, cu_seqlens = (x(skipped).to(run.policy.device) for x in (batch.mask_N, batch.cu_seqlens))
        record.unscored_tokens(skipped, run.policy_loss.unscored(mask=mask_N, cu_seqlens=cu_seqlens))
        run.learners[0].count_missing_gradients_as_zero()

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
    run: RunParts, batch: Batch, scored: list[int], parts: Sequence[list[int]], targets: Targets, is_first: bool
) -> Context | None:
    """What a rule that looks at the whole minibatch has to know of it; the cost is one more forward pass.

    None for most rules, which decide token by token, and for a minibatch that is scored in one piece anyway.
    """
    if run.policy_loss.rule.context is None or len(parts) == 1:
        return None
    here = batch.token_index(scored)
    with torch.no_grad():
        logp_new_N = log_probs(run, run.policy, batch, [scored])[here]
    return run.policy_loss.context(
        logp_new=logp_new_N,
        logp_old=logp_new_N if is_first else targets.logp_old_N[here],
        advantage=targets.advantage_N[here],
        mask=batch.mask_N(scored),
        cu_seqlens=batch.cu_seqlens(scored),
    )


def policy_backward(
    run: RunParts,
    step: int,
    batch: Batch,
    chosen: list[int],
    targets: Targets,
    is_first: bool,
    counts: Normalizer,
    context: Context | None,
    record: StepRecord,
) -> None:
    """Adds the gradient of the chosen samples' part of the minibatch loss; the parts add up exactly.

    is_first: the update is the first on the batch, and takes the log-probs that it scores as the old ones
    """
    settings, device = run.settings, run.policy.device
    here, mask_N, cu_seqlens = batch.token_index(chosen), batch.mask_N(chosen), batch.cu_seqlens(chosen)
    before = targets.at(here, device)
    layout = Layout.packed(mask_N.shape, cu_seqlens.to(device), None if mask_N.all() else mask_N.to(device))
    bonus, temperature = settings.objective.entropy_bonus, settings.rollout.temperature
    outputs: list[PolicyLossOutput] = []

    def loss_of(rows: slice, logp_new_C: Tensor, entropy_C: Tensor) -> Tensor:
        part = before.part(rows)
        out = run.policy_loss(
            logp_new=logp_new_C,
            logp_old=logp_new_C.detach() if is_first else part.logp_old_N,
            advantage=part.advantage_N,
            layout=layout if rows == slice(0, len(here)) else layout.part(rows),
            logp_ref=part.logp_ref_N,
            logp_sampler=None if run.policy_loss.correction is None else part.logp_sampler_N,
            normalizer=counts,
            context=context,
            beta=run.kl_penalty.beta if settings.objective.kl.where == "loss" else 0.0,
        )
        outputs.append(out)
        if bonus == 0:
            return out.loss
        return out.loss - bonus * (entropy_C * out.decision.mask).sum() / max(1, counts.tokens)

    sequences = [batch.sequences[i] for i in chosen]
    if run.shortcuts.one_pass_head:
        pieces = what_stays_whole(run, cu_seqlens, context)
        logp_new_N, entropy_N = backward_in_one_pass(
            run.policy, sequences, temperature, loss_of, pieces=pieces, entropy_gradient=bonus > 0
        )
    else:
        logp_new_N, entropy_N = backward_by_autograd(
            run.policy, sequences, temperature, loss_of, entropy_gradient=bonus > 0
        )
    require_finite_tokens("logp_new", logp_new_N, batch, chosen, step)
    out = PolicyLossOutput.joined(outputs)
    require_finite_tokens("the gradient weight", out.decision.weight, batch, chosen, step)
    if is_first:
        targets.logp_old_N[here] = logp_new_N.cpu()
    record.policy_tokens(chosen, logp_new_N, logp_new_N if is_first else before.logp_old_N, entropy_N, out)


def what_stays_whole(run: RunParts, cu_seqlens: Tensor, context: Context | None) -> Tensor | None:
    """Where the pieces of a micro-batch begin and end that the loss has to see whole; None: any tokens will do."""
    if run.policy_loss.rule.context is not None and context is None:  # this micro-batch is the minibatch
        return cu_seqlens[[0, -1]]
    return None if run.policy_loss.tokenwise else cu_seqlens


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
