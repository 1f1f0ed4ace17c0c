"""What an update costs with and without the shortcuts of reading: shared prompts, packing, skipped samples.

    python benchmarks/update.py [--turns 3] [--threads N] [--only shared|deep|uneven|skip]

One update of the trainer (`dinghai.train.loop`: forward, policy loss, backward, optimiser) on made-up rollouts, GRPO,
float32 on the CPU. The model is a Qwen3 configuration with random weights: 256 wide, 4 layers, vocabulary of 8192,
tied (5 million parameters, of which 2 are the head). Its paths take turns; times are medians.

    shared   8 completions a prompt, prompts of 128 tokens, completions of 128: prompts computed once, against packed
             without sharing. The bar is 1.6. The head is not shared: it costs the same on both paths, and the products
             of matrices alone allow no more than the ratio in the last column
    deep     the same with 12 layers, so that the head is as small a part as in larger models; the same bar
    uneven   completions of 16 to 240 tokens: packed and shared against padded
    skip     the rollouts of `shared`, and three of five groups without signal: not scored, against scored. The bar is 2

Before anything is timed, the gradients of a case's paths are compared: 1e-6 of their norm. Memory is what the process
grows by at its largest, each path in a process of its own. Prints a table; exits with status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from dinghai.config.settings import TrainSettings
from dinghai.policy.builtin import build_tokenizer
from dinghai.policy.pretrained import without_progress_bars
from dinghai.policy.reading import PADDED, Reading
from dinghai.policy.sequences import TokenSequence
from dinghai.rollout.engine import Completion
from dinghai.tasks.base import Prompt
from dinghai.tasks.rewards import RewardTable
from dinghai.train import loop
from dinghai.train.batch import Batch
from dinghai.train.collect import Collected
from dinghai.train.learner import Learner
from dinghai.train.record import StepRecord
from dinghai.train.run_parts import RunParts
from dinghai.train.setup import Beginning

VOCABULARY, WIDTH, INNER, GROUPS, COMPLETIONS, LENGTH = 8192, 256, 768, 5, 8, 128
SAME = 1e-6  # how far gradients may differ, of their norm
PACKED, SHARED = Reading(packed=True, shared_prompts=False), Reading(packed=True, shared_prompts=True)


@dataclass(frozen=True)
class Way:
    """A way to do an update."""

    name: str
    reading: Reading
    skip: bool = True


@dataclass(frozen=True)
class Case:
    """A batch, and the paths that are compared on it, the one that is measured against first."""

    layers: int
    shortest: int
    longest: int
    with_signal: int  # groups
    paths: tuple[Way, ...]
    bar: float | None


WITHOUT, ONCE = Way("packed", PACKED), Way("packed, shared prompts", SHARED)
CASES = {
    "shared": Case(4, LENGTH, LENGTH, GROUPS, (WITHOUT, ONCE), 1.6),
    "deep": Case(12, LENGTH, LENGTH, GROUPS, (WITHOUT, ONCE), 1.6),
    "uneven": Case(4, 16, 240, GROUPS, (Way("padded", PADDED), WITHOUT, ONCE), None),
    "skip": Case(
        4,
        LENGTH,
        LENGTH,
        2,
        (Way("all scored", SHARED, skip=False), Way("those without signal skipped", SHARED)),
        2.0,
    ),
}


def make_run(layers: int) -> RunParts:
    """A run of the trainer with a model of `layers` layers; its learning rate changes no weight."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=INNER,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 256),
    )
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        with without_progress_bars():
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        build_tokenizer(512).save_pretrained(folder)
        settings = TrainSettings.model_validate(
            {
                "model": {"path": folder, "device": "cpu"},
                "rollout": {"prompts": GROUPS, "group_size": COMPLETIONS},
                "update": {"lr": 1e-30, "micro_batch_tokens": 16384},
                "cold_start": {"steps": 0},
                "trace": {"enabled": False},
            }
        )
        run = Beginning(settings, set()).parts(Path(folder))
    if run.policy.reading != SHARED or not run.shortcuts.skip_no_signal:
        sys.exit("the model does not allow the shortcuts that are to be measured")
    return run


def make_rollouts(case: Case) -> Collected:
    """Random tokens, and rewards that agree in the groups without signal."""
    draw = random.Random(0)
    batch_of: dict[str, list[Any]] = {"prompts": [], "groups": [], "sequences": [], "completions": []}
    rewards = []
    for group in range(GROUPS):
        prompt = [draw.randrange(VOCABULARY) for _ in range(LENGTH)]
        for member in range(COMPLETIONS):
            ids = [draw.randrange(VOCABULARY) for _ in range(draw.randint(case.shortest, case.longest))]
            batch_of["prompts"].append(Prompt(str(group), ""))
            batch_of["groups"].append(group)
            batch_of["sequences"].append(TokenSequence(prompt, ids))
            batch_of["completions"].append(Completion(ids, np.zeros(len(ids), np.float32), True))
            rewards.append(float(member % 2) if group < case.with_signal else 1.0)
    batch = Batch(
        **batch_of,
        texts=[""] * len(rewards),
        rewards=RewardTable(names=["made up"], parts={"made up": rewards}, total=rewards),
        reward_B=torch.tensor(rewards, dtype=torch.float64),
        in_loss_B=torch.ones(len(rewards), dtype=torch.bool),
    )
    return Collected(batch, 0, 0, 0.0)


def update(run: RunParts, path: Way, collected: Collected) -> float:
    """Seconds of one update, from the advantages on."""
    run.policy.reading = path.reading
    run = dataclasses.replace(run, shortcuts=dataclasses.replace(run.shortcuts, skip_no_signal=path.skip))
    batch = collected.batch
    record = StepRecord(1, collected, None, run.policy_loss.ratio)
    record.begin_update(0, 0, 0)
    samples = list(range(batch.samples))
    targets = loop.prepare_targets(run, 1, batch, [samples])
    begun = time.perf_counter()
    loop.update_on(run, 1, 0, batch, samples, targets, record)
    return time.perf_counter() - begun


@contextmanager
def gradients_kept() -> Iterator[list[Tensor]]:
    """The whole gradient of each update within it, before its norm is limited."""
    kept: list[Tensor] = []
    clip_gradient = Learner.clip_gradient

    def keep(self: Learner) -> Tensor:
        kept.append(torch.cat([w.grad.flatten() for w in self.weights.values() if w.grad is not None]))
        return clip_gradient(self)

    with mock.patch.object(Learner, "clip_gradient", keep):
        yield kept


def furthest_gradient(run: RunParts, case: Case, collected: Collected) -> float:
    """How far a path's gradient is from the first one's, of its norm."""
    with gradients_kept() as kept:
        for path in case.paths:
            update(run, path, collected)
    return max(float((other - kept[0]).norm() / kept[0].norm()) for other in kept)


def peak_megabytes(name: str, path: str) -> float:
    """What a process of its own grows by in one update."""
    command = [sys.executable, __file__, "--grows-by", name, path]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def grows_by(name: str, path_name: str) -> float:
    """Megabytes between before and the largest during an update on the path."""
    case = CASES[name]
    run, collected = make_run(case.layers), make_rollouts(case)
    Path("/proc/self/clear_refs").write_text("5")  # the largest is counted from here on
    before = memory_of_process("VmRSS")
    update(run, next(p for p in case.paths if p.name == path_name), collected)
    return memory_of_process("VmHWM") - before


def memory_of_process(which: str) -> float:
    """A field of the kernel's account of this process, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1e3


def most_that_products_allow(case: Case, collected: Collected) -> float:
    """The ratio of the paths' products of matrices, in layers and head."""
    layer = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * INNER
    sequences = collected.batch.sequences
    read = sum(len(s) - 1 for s in sequences)
    shared = read - (len(sequences) - GROUPS) * LENGTH
    head = sum(len(s.completion_ids) for s in sequences) * WIDTH * VOCABULARY
    return (read * layer * case.layers + head) / (shared * layer * case.layers + head)


def measure(name: str, turns: int) -> bool:
    """Prints the rows of one case. True if its bar is met."""
    case = CASES[name]
    run, collected = make_run(case.layers), make_rollouts(case)
    apart = furthest_gradient(run, case, collected)
    if apart > SAME:
        sys.exit(f"{name}: the gradients differ by {apart:.1e} of their norm: nothing is timed")
    seconds: dict[str, list[float]] = {path.name: [] for path in case.paths}
    for _ in range(turns):
        for path in case.paths:
            seconds[path.name].append(update(run, path, collected))
    first = statistics.median(seconds[case.paths[0].name])
    met = True
    for path in case.paths:
        took = statistics.median(seconds[path.name])
        verdict = ""
        if path is case.paths[-1]:
            if path.reading == SHARED and name in ("shared", "deep"):
                verdict = f"products allow {most_that_products_allow(case, collected):.2f}"
            if case.bar is not None:
                met = first / took >= case.bar
                verdict += f"  bar {case.bar:g}: {'met' if met else 'MISSED'}"
        print(
            f"{name:<8}{path.name:<30}{took:>9.3f} s{min(seconds[path.name]):>9.3f} s{first / took:>8.2f} x"
            f"{peak_megabytes(name, path.name):>9.0f} MB{apart:>10.0e}  {verdict.strip()}",
            flush=True,
        )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--grows-by", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.grows_by:
        print(grows_by(*given.grows_by))
        return 0
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {given.threads} threads, torch {torch.__version__}, {date.today()}, {given.turns} turns")
    print(f"{'case':<8}{'path':<30}{'median':>11}{'least':>11}{'faster':>10}{'memory':>12}{'gradients':>10}")
    met = [measure(name, given.turns) for name in CASES if given.only in (None, name)]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
