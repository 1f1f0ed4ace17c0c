"""The cold start: supervised learning on the task's demonstrations, so that rewards are not always zero."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError, RunFailed
from dinghai.policy.model import Policy, check_context
from dinghai.policy.scoring import TokenSequence, micro_batches, score
from dinghai.tasks.base import Task

WARMUP_STEPS = 20
FINAL_SHARE = 0.05  # of the peak learning rate, at the last step


def cold_start(policy: Policy, task: Task, settings: TrainSettings, report: Callable[[int, int, float], None]) -> None:
    """Maximises the log-probability of the demonstrations' completions, token mean over each batch.

    report: called with (step, steps, loss in nats a token)
    """
    steps, batch_size = settings.cold_start.steps, settings.cold_start.batch_size
    parameters = list(policy.trainable().values())
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.cold_start.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    for step in range(steps):
        sequences = _demonstrations(policy, task, range(step * batch_size, (step + 1) * batch_size))
        tokens = sum(len(s.completion_ids) for s in sequences)
        loss = 0.0
        budget = settings.update.micro_batch_tokens
        for chosen in micro_batches(sequences, range(batch_size), budget, policy.reading):
            logp_N, _ = score(policy, [sequences[i] for i in chosen], temperature=1.0)
            part = -logp_N.sum() / tokens
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if not torch.isfinite(norm):
            raise RunFailed(
                f"cold start, step {step + 1}: the gradient is {norm.item()} (loss {loss:g}); "
                f"lower cold_start.lr (now {settings.cold_start.lr:g})"
            )
        warmup, decay = min(1.0, (step + 1) / WARMUP_STEPS), 1 - (1 - FINAL_SHARE) * step / steps
        for group in optimizer.param_groups:
            group["lr"] = settings.cold_start.lr * warmup * decay
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step + 1, steps, loss)


def _demonstrations(policy: Policy, task: Task, indices: range) -> list[TokenSequence]:
    examples = [example for i in indices if (example := task.demonstration(i)) is not None]
    if len(examples) < len(indices):
        raise InputError(f"cold_start.steps: the task {task.name!r} has no demonstrations to learn from; set it to 0")
    prompts = policy.prompt_ids([prompt.text for prompt, _ in examples])
    completions = policy.tokenizer([completion for _, completion in examples], add_special_tokens=False)["input_ids"]
    end = sorted(policy.end_ids)[:1]  # a model without an end token learns none
    sequences = []
    for (prompt, _), prompt_ids, completion_ids in zip(examples, prompts, completions, strict=True):
        sequences.append(TokenSequence(prompt_ids, [*completion_ids, *end]))
        check_context(policy, prompt_ids, prompt.id, len(completion_ids) + len(end))
    return sequences
