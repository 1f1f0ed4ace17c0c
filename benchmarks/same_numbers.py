"""Proves that the update's shortcuts change no number: fifty steps with all of them beside fifty with none.

    python benchmarks/same_numbers.py [CONFIG.toml] [--steps 50] [--run.seed 0]

All runs begin with the weights of one cold start. Each step's rollouts are sampled once, by the plain run, and all
learn from them: a token that rounding flips at sampling would lead two runs apart that are equally right. Compared
after every step, as |a run - the plain run|:

    loss                minus the mean surrogate of the step's updates
    KL                  KL(old || new) of the step's updates, k3, nats a token
    entropy             nats a token with a signal
    stopped fraction    share of the tokens with a signal
    reward              mean of the step's rollouts: the same by construction
    held-out accuracy   by greedy decoding, every ten steps
    log-prob            mean over the tokens of the first step's rollouts, a fixed probe, by the weights of the moment,
                        in nats; through a copy in float64, so that the rounding of the probe itself is left out
    parameters          every trained weight, but for the biases of keys

The bar: nothing of this is further off than 1e-4 at any step, and the mean over all steps (and weights) is below 1e-6.
Two more rows have no bar, since rounding alone takes them past any:

    biases of keys      softmax does not see them, so their gradient is 0 but for rounding, of which AdamW makes steps
                        as large as any. They change no output
    a token's log-prob  of the probe, each token for itself: the most sensitive of thousands is the furthest off

A control shows what rounding alone does in as many steps: the plain run with its minibatches split in two, which adds
the same gradients in another order. Prints a table; exits with status 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinghai.config.load import load_settings
from dinghai.policy.reading import PADDED
from dinghai.train import loop
from dinghai.train.cold_start import cold_start
from dinghai.train.collect import Collected, collect
from dinghai.train.evaluate import held_out_accuracy
from dinghai.train.run_parts import RunParts
from dinghai.train.setup import Beginning, seed_everything
from dinghai.train.targets import log_probs

FURTHEST, MEAN = 1e-4, 1e-6
WITHOUT_BAR = ("biases of keys", "a token's log-prob")
NONE = {
    "packing": False,
    "shared_prompts": False,
    "one_pass_head": False,
    "skip_no_signal": False,
    "old_log_probs": "score",
}
CONTROL = "--update.micro_batch_tokens=1024"  # about half of a minibatch
METRICS = {
    "loss": "clip/surrogate_mean",
    "KL": "clip/kl_old_new_k3",
    "entropy": "entropy",
    "stopped fraction": "clip/stopped_fraction",
    "reward": "reward/mean",
}


@dataclass
class Drift:
    """How far two runs are apart in one thing, over all steps."""

    furthest: float = 0.0
    total: float = 0.0
    count: int = 0
    at_end: float = 0.0

    def add(self, difference: Tensor) -> None:
        """The absolute differences of one step."""
        self.furthest = max(self.furthest, float(difference.max()))
        self.total += float(difference.double().mean())
        self.count += 1
        self.at_end = float(difference.max())

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)


class Run:
    """A run, step by step, with what its steps took."""

    def __init__(self, beginning: Beginning) -> None:
        self.parts: RunParts = beginning.parts(Path(tempfile.mkdtemp()))
        self.seconds = 0.0

    def step(self, step: int, collected: Collected) -> dict[str, Any]:
        """One step on given rollouts: its metrics."""
        with rollouts(collected):
            begun = time.perf_counter()
            record, _ = loop.train_step(self.parts, step, 0)
            self.seconds += time.perf_counter() - begun
        return record.finish()

    def accuracy(self) -> float:
        parts = self.parts
        return held_out_accuracy(parts.policy, parts.engine, parts.task, parts.settings)


@contextmanager
def rollouts(collected: Collected) -> Iterator[None]:
    """Within it, a training step finds these rollouts."""
    sampled, loop.collect = loop.collect, lambda *_: collected
    try:
        yield
    finally:
        loop.collect = sampled


def begin(config: str | None, options: list[str], steps: int) -> list[Beginning]:
    """The plain run, the one with all shortcuts, and the control, from the same weights."""
    switches = [f"--update.shortcuts.{name}={str(value).lower()}" for name, value in NONE.items()]
    begun = []
    for own in (switches, [], [*switches, CONTROL]):
        given = [*options, f"--run.steps={steps}", "--trace.enabled=false", *own]
        begun.append(Beginning(load_settings(Path(config) if config else None, given), ()))
    plain = begun[0]
    if plain.settings.cold_start.steps:
        cold_start(plain.policy, plain.task, plain.settings, lambda *_: None)
    for other in begun[1:]:
        other.policy.model.load_state_dict(plain.policy.model.state_dict())
    return begun


def compare(begun: list[Beginning], steps: int) -> tuple[list[dict[str, Drift]], list[Run]]:
    """All runs side by side: the drifts of each by name, and the runs; the plain one first."""
    runs = [Run(beginning) for beginning in begun]
    drifts: list[dict[str, Drift]] = [{} for _ in runs]
    parts, settings = runs[0].parts, begun[0].settings
    probe: Collected | None = None
    next_prompt = 0
    for step in range(1, steps + 1):
        seed_everything(settings.run.seed, "step", step)
        collected = collect(parts.policy, parts.engine, parts.task, parts.rewards, settings, step, next_prompt)
        next_prompt, probe = collected.next_prompt, probe or collected
        seen = [look(run, run.step(step, collected), runs[0], probe) for run in runs]
        if step % 10 == 0 or step == steps:
            for run, found in zip(runs, seen, strict=True):
                found["held-out accuracy"] = torch.tensor(run.accuracy())
        for of_run, found in zip(drifts, seen, strict=True):
            for name, value in found.items():
                of_run.setdefault(name, Drift()).add((value - seen[0][name]).abs())
    return drifts, runs


def look(run: Run, metrics: dict[str, Any], plain: Run, probe: Collected) -> dict[str, Tensor]:
    """What is compared of a run after a step."""
    found = {name: torch.tensor(metrics.get(key, 0.0), dtype=torch.float64) for name, key in METRICS.items()}
    exact = run.parts.policy.frozen_copy()
    exact.model.double()
    exact.reading = PADDED
    with torch.no_grad():
        logp_N = log_probs(plain.parts, exact, probe.batch, [list(range(probe.batch.samples))])
    found["log-prob"], found["a token's log-prob"] = logp_N.double().mean(), logp_N
    weights, keys = [], []
    for name, parameter in run.parts.policy.trainable().items():
        values = parameter.detach().flatten().clone()
        if name.endswith("k_proj.bias"):
            keys.append(values)
            continue
        if name.endswith("attn.c_attn.bias"):  # of queries, keys and values together
            queries, biases, others = values.chunk(3)
            keys.append(biases)
            values = torch.cat([queries, others])
        weights.append(values)
    found["parameters"] = torch.cat(weights)
    if keys:
        found["biases of keys"] = torch.cat(keys)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="settings; by default those of the first run")
    parser.add_argument("--steps", type=int, default=50)
    given, options = parser.parse_known_args()
    begun = begin(given.config, options, given.steps)
    print(f"shortcuts that are left out: {'; '.join(begun[1].notes) or 'none'}")
    (_, drifts, control), (plain, short, _) = compare(begun, given.steps)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {date.today()}, {given.steps} steps")
    print(f"{'drift of':<20}{'furthest':>12}{'at the end':>12}{'mean':>12}{'control: furthest':>20}{'mean':>12}")
    missed = False
    for name, drift in drifts.items():
        bad = name not in WITHOUT_BAR and (drift.furthest > FURTHEST or drift.mean >= MEAN)
        missed |= bad
        beside = control[name]
        print(
            f"{name:<20}{drift.furthest:>12.1e}{drift.at_end:>12.1e}{drift.mean:>12.1e}{beside.furthest:>20.1e}"
            f"{beside.mean:>12.1e}{'  MISSED' if bad else ''}"
        )
    print(f"updates took {plain.seconds:.1f} s with none, {short.seconds:.1f} s with all of the shortcuts")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
