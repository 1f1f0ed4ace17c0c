"""The job as TRL's GRPOTrainer does it. `python run_trl.py JOB RESULT-FILE`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from dinghai.config.settings import JsonlTaskSettings
from dinghai.tasks.jsonl import JsonlTask
from safetensors.torch import save_file
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import toy_language
from job import BETAS, EPS, MAX_GRAD_NORM, UPDATES, Job, Result, fingerprint, given, leave


class Clock(TrainerCallback):
    """When each batch of rollouts began: TRL's steps are updates."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % UPDATES == 0:
            self._result.tick()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._result.tick()
        self._result.updates = state.global_step


def prompts_of(job: Job) -> list[str]:
    """The prompts in the order in which Dinghai's task gives them."""
    settings = JsonlTaskSettings(path=f"{job.folder}/{job.words}", instruction="", held_out=1)
    task = JsonlTask(settings, job.seed)
    try:
        return [task.train_prompt(i).text for i in range(job.steps * job.prompts)]
    finally:
        task.close()


def config_of(job: Job) -> GRPOConfig:
    """The fastest of TRL on a CPU: 8 and 32 rows a pass take the same time, and its continuous batching, meant for
    GPUs, samples several times slower than `generate`. No logs, no checkpoints, no recomputed activations.
    """
    parts = job.completions // job.rows
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"},
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        seed=job.seed,
        max_steps=UPDATES * job.steps,
        per_device_train_batch_size=job.rows,
        gradient_accumulation_steps=parts,
        num_generations=job.group_size,
        num_iterations=UPDATES,
        max_completion_length=job.new_tokens,
        temperature=1.0,
        beta=0.0,
        epsilon=EPS,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
    )


def main() -> None:
    job, path = given()
    torch.set_num_threads(job.threads)
    result = Result()
    drawn: list[dict[str, Any]] = []

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        values = toy_language.sea_share(completions)
        result.reward.append(sum(values) / len(values))
        result.tokens.append(sum(map(len, completion_ids)))
        result.longest.append(max(map(len, completion_ids)))
        drawn.append({"prompts": prompts[:: job.group_size], "completions": completion_ids})
        return values

    trainer = GRPOTrainer(
        model=f"{job.folder}/{toy_language.MODEL}",
        reward_funcs=reward,
        args=config_of(job),
        train_dataset=Dataset.from_dict({"prompt": prompts_of(job)}),
        callbacks=[Clock(result)],
    )
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    result.initial_weights = fingerprint(trainer.model.named_parameters())
    generate = trainer._generate

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        made = generate(*arguments)
        result.rollout.append(time.perf_counter() - begun)
        return made

    trainer._generate = timed
    trainer.train()
    result.lr = [group["lr"] for group in trainer.optimizer.param_groups]
    if job.rollouts is not None:
        Path(job.rollouts).write_text(json.dumps(drawn), encoding="utf-8")
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        save_file(weights, f"{job.rollouts}.safetensors")
    leave(result, path)


if __name__ == "__main__":
    main()
