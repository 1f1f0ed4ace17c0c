"""Proves that the update's shortcuts change no number: fifty steps with all of them beside fifty with none.

    python benchmarks/same_numbers.py [CONFIG.toml] [--steps 50] [--run.seed 0]

Both runs begin with the weights of one cold start. Each step's rollouts are sampled once, by the plain run, and both
learn from them: a token that rounding flips at sampling would lead two runs apart that are equally right. Compared
after every step, as |with all - with none|:

    parameters          every trained weight
    log-probs           of the tokens of the first step's rollouts, by the weights of the moment: a fixed probe, nats
    loss                minus the mean surrogate of the step's updates
    KL                  KL(old || new) of the step's updates, k3, nats a token
    entropy             nats a token with a signal
    gradient norm       mean of the step's updates, before it is clipped
    stopped fraction    share of the tokens with a signal
    reward              mean of the step's rollouts: the same by construction
    held-out accuracy   by greedy decoding, every ten steps

The bar: nothing is further off than 1e-4 at any step, and the mean over all steps (and weights, or tokens) is below
1e-6; the gradient norm is measured relative to itself. Prints a table; exits with status 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinghai.config.load import load_settings
from dinghai.train import loop
from dinghai.train.cold_start import cold_start
from dinghai.train.collect import Collected, collect
from dinghai.train.evaluate import held_out_accuracy
from dinghai.train.run_parts import RunParts
from dinghai.train.setup import Beginning, seed_everything
from dinghai.train.targets import log_probs

FURTHEST, MEAN = 1e-4, 1e-6
NONE = {
    "packing": False,
    "shared_prompts": False,
    "one_pass_head": False,
    "skip_no_signal": False,
    "old_log_probs": "score",
}
METRICS = {
    "loss": "clip/surrogate_mean",
    "KL": "clip/kl_old_new_k3",
    "entropy": "entropy",
    "gradient norm": "grad_norm_mean",
    "stopped fraction": "clip/stopped_fraction",
    "reward": "reward/mean",
}


@dataclass
class Drift:
    """How far two runs are apart in one thing, over all steps."""

    furthest: float = 0.0
    total: float = 0.0
    count: int = 0
    at_end: float = field(default=0.0)

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


def compare(config: str | None, options: list[str], steps: int) -> tuple[dict[str, Drift], list[Run]]:
    """Both runs side by side: the drifts by name, and the runs, the plain one first."""
    begun = []
    for shortcuts in (NONE, {}):
        switches = [f"--update.shortcuts.{name}={str(value).lower()}" for name, value in shortcuts.items()]
        own = [f"--run.steps={steps}", "--trace.enabled=false"]
        settings = load_settings(Path(config) if config else None, [*options, *own, *switches])
        begun.append(Beginning(settings, ()))
    settings = begun[0].settings
    if settings.cold_start.steps:
        cold_start(begun[0].policy, begun[0].task, settings, lambda *_: None)
    begun[1].policy.model.load_state_dict(begun[0].policy.model.state_dict())
    print(f"all shortcuts, but: {'; '.join(begun[1].notes) or 'none left out'}")
    runs = plain, short = [Run(beginning) for beginning in begun]
    drifts = {name: Drift() for name in ("parameters", "log-probs", *METRICS, "held-out accuracy")}
    probe: Collected | None = None
    next_prompt = 0
    for step in range(1, steps + 1):
        parts = plain.parts
        seed_everything(settings.run.seed, "step", step)
        collected = collect(parts.policy, parts.engine, parts.task, parts.rewards, settings, step, next_prompt)
        next_prompt, probe = collected.next_prompt, probe or collected
        ours, theirs = (run.step(step, collected) for run in runs)
        weights = [torch.cat([p.detach().flatten() for p in run.parts.policy.trainable().values()]) for run in runs]
        drifts["parameters"].add((weights[0] - weights[1]).abs())
        everyone = [list(range(probe.batch.samples))]
        with torch.no_grad():
            one, other = (log_probs(plain.parts, run.parts.policy, probe.batch, everyone) for run in runs)
        drifts["log-probs"].add((one - other).abs())
        for name, key in METRICS.items():
            scale = abs(ours.get(key, 0.0)) if name == "gradient norm" else 1.0
            drifts[name].add(torch.tensor(abs(ours.get(key, 0.0) - theirs.get(key, 0.0)) / (scale or 1.0)))
        if step % 10 == 0 or step == steps:
            drifts["held-out accuracy"].add(torch.tensor(abs(plain.accuracy() - short.accuracy())))
    return drifts, list(runs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="settings; by default those of the first run")
    parser.add_argument("--steps", type=int, default=50)
    given, options = parser.parse_known_args()
    drifts, (plain, short) = compare(given.config, options, given.steps)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {date.today()}, {given.steps} steps"
    )
    print(f"{'drift of':<20}{'furthest':>12}{'at the end':>12}{'mean':>12}")
    missed = False
    for name, drift in drifts.items():
        bad = drift.furthest > FURTHEST or drift.mean >= MEAN
        missed |= bad
        print(f"{name:<20}{drift.furthest:>12.1e}{drift.at_end:>12.1e}{drift.mean:>12.1e}{'  MISSED' if bad else ''}")
    print(f"updates took {plain.seconds:.1f} s with none, {short.seconds:.1f} s with all of the shortcuts")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
