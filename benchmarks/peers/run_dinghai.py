"""The job as Dinghai does it, with its defaults where the job says nothing. `python run_dinghai.py JOB RESULT-FILE`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dinghai.config.settings import TrainSettings
from dinghai.rollout.engine import Completion, Sampling
from dinghai.train import run
from dinghai.train.loop import train_step
from dinghai.train.setup import Beginning, seed_everything
from safetensors.torch import load_file

import toy_language
from job import BETAS, EPS, MAX_GRAD_NORM, UPDATES, Job, Result, fingerprint, given, leave

REWARD = f"{Path(toy_language.__file__).resolve()}:{toy_language.sea_share.__name__}"


def settings_of(job: Job, runs: str) -> TrainSettings:
    """The trace is on, as it is by default."""
    return TrainSettings.model_validate(
        {
            "run": {"folder": runs, "name": "run", "seed": job.seed, "steps": job.steps},
            "model": {"path": f"{job.folder}/{toy_language.MODEL}", "threads": job.threads, "device": "cpu"},
            "task": {
                "kind": "jsonl",
                "path": f"{job.folder}/{job.words}",
                "instruction": "",
                "held_out": 1,
            },
            "rewards": [{"source": REWARD}],
            "rollout": {
                "prompts": job.prompts,
                "group_size": job.group_size,
                "max_new_tokens": job.new_tokens,
                "temperature": 1.0,
                "dtype": job.dtype,
            },
            "objective": {"rule": "grpo", "eps_low": EPS, "eps_high": EPS, "reduction": "seq-mean-token-mean"},
            "advantage": {"kind": "group", "scale": "group"},
            "update": {
                "epochs": UPDATES,
                "minibatches": 1,
                "lr": job.lr,
                "schedule": "constant",
                "warmup": 0,
                "betas": BETAS,
                "weight_decay": 0.0,
                "max_grad_norm": MAX_GRAD_NORM,
            },
            "evaluation": {"every": 10**6},
            "checkpoint": {"every": 10**6},
        }
    )


def train(job: Job) -> Result:
    """A whole run, as `dinghai train` makes it, but without held-out problems, which the other side has none of.

    The last checkpoint and the report come behind the last step.
    """
    result, step = Result(), run._step

    def timed(parts: Any, number: int, next_prompt: int) -> Any:
        if number == 1:
            result.initial_weights = fingerprint(parts.policy.trainable().items())
        result.tick()
        done = step(parts, number, next_prompt)
        metrics = done[0]
        if number == job.steps:
            result.tick()
        result.rollout.append(metrics["seconds/rollout"])
        result.reward.append(metrics["reward/mean"])
        result.tokens.append(round(metrics["completion/length_mean"] * job.completions))
        result.longest.append(int(metrics["completion/length_max"]))
        result.lr = [metrics["lr"]]
        result.updates += metrics["updates"]
        return done

    run._step = timed
    run.held_out_accuracy = lambda *_: 0.0
    with tempfile.TemporaryDirectory() as runs, contextlib.redirect_stdout(io.StringIO()):
        run.train(settings_of(job, runs), {REWARD})
    return result


class Replay:
    """An engine that gives completions drawn elsewhere, step after step."""

    def __init__(self, drawn: list[dict[str, Any]], prompt_ids: Any) -> None:
        self._drawn, self._prompt_ids = iter(drawn), prompt_ids

    def generate(
        self, prompts: Sequence[list[int]], group_size: int, sampling: Sampling, seed: int
    ) -> list[list[Completion]]:
        step = next(self._drawn)
        assert self._prompt_ids(step["prompts"]) == list(prompts), "the prompts are not those of the other run"
        rows = [
            Completion(ids, np.zeros(len(ids), np.float32), ids[-1] == toy_language.END) for ids in step["completions"]
        ]
        return [rows[i : i + group_size] for i in range(0, len(rows), group_size)]

    def greedy(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Completion]:
        raise NotImplementedError


def follow(job: Job) -> dict[str, float]:
    """Trains on the other side's completions. How far apart the weights end, against how far they went."""
    assert job.rollouts is not None
    with tempfile.TemporaryDirectory() as runs:
        beginning = Beginning(settings_of(job, runs), {REWARD})
        parts = beginning.parts(Path(runs))
        policy = parts.policy
        before = {name: p.detach().clone() for name, p in policy.trainable().items()}
        drawn = json.loads(Path(job.rollouts).read_text(encoding="utf-8"))
        parts = dataclasses.replace(parts, engine=Replay(drawn, policy.prompt_ids), trace=None)
        next_prompt = 0
        for number in range(1, job.steps + 1):
            seed_everything(job.seed, "step", number)
            _, next_prompt = train_step(parts, number, next_prompt)
        beginning.task.close()
    theirs = load_file(f"{job.rollouts}.safetensors")
    ours = {name: p.detach() for name, p in policy.trainable().items()}
    assert ours.keys() == theirs.keys()

    def distance(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> float:
        return sum(float((these[name] - those[name]).double().square().sum()) for name in these) ** 0.5

    return {"apart": distance(ours, theirs), "went": distance(theirs, before)}


def main() -> None:
    job, path = given()
    torch.set_num_threads(job.threads)
    if job.rollouts is None:
        leave(train(job), path)
    else:
        path.write_text(json.dumps(follow(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
