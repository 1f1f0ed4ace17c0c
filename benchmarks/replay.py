"""Proves that a replay decides as training did, and measures what it costs.

    python benchmarks/replay.py [--quick] [--rules grpo,gspo] [--folder FOLDER]

Trains the built-in task with every rule, 40 steps each (--quick: 6, after a shorter cold start), replays each run's own
settings on its whole trace, and counts the decisions that come out as recorded: all of them, region and effect and
every bit of the weight. Then, on a made-up minibatch of a million tokens, how long one objective takes; and, of the
first of the runs, what the page's replay adds to a report. Exits with status 1 where a decision differs. About half an
hour; five minutes with --quick. The machine should be idle. Runs that lie in FOLDER already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

import dinghai
from dinghai.lens.completions import group, group_heads
from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.replay import Minibatch, own_sums_of, recorded_objective, replay, sums_of
from dinghai.lens.replay_compare import compare
from dinghai.lens.replay_page import replay_groups, replay_page
from dinghai.lens.tokens import Tokens
from dinghai.objective import RULES, PolicyLoss
from dinghai.trace import TraceReader

TOKENS, LENGTH = 1_000_000, 1_000
TIMED = ("grpo", "gspo", "cispo", "sapo", "dppo_tv", "bapo", "vaco")
STEPS, QUICK = 40, ["--run.steps", "6", "--cold_start.steps", "60"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 steps of each run")
    parser.add_argument("--rules", help="those that are trained; by default all")
    parser.add_argument("--folder", type=Path, help="where the runs lie; by default a temporary folder")
    options = parser.parse_args()
    rules = options.rules.split(",") if options.rules else list(RULES)
    print(f"Dinghai {dinghai.__version__}, torch {torch.__version__}, {platform.machine()}, {date.today()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        differing = [rule for rule in rules if not exactness(trained(folder, rule, options.quick))]
        print(f"\n{'SOME DECISIONS DIFFER: ' + ', '.join(differing) if differing else 'every decision as recorded'}\n")
        cost_of_page(folder / rules[0])
    cost_of_a_million()
    return 1 if differing else 0


def trained(folder: Path, rule: str, quick: bool) -> Path:
    """The folder of a finished run."""
    run = folder / rule
    if not (run / "report.html").is_file():
        named = ["--run.folder", str(folder), "--run.name", rule, "--objective.rule", rule]
        command = [sys.executable, "-m", "dinghai.cli", "train", *named, *(QUICK if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{rule}: {done.stderr}")
    return run


def exactness(run: Path) -> bool:
    """Prints how many decisions of a run its own settings give again; whether all."""
    reader, own = TraceReader(run / "trace"), recorded_objective(run)
    counts = np.zeros(4, dtype=np.int64)
    for step in reader.steps():
        for update in reader.updates(step):
            one = replay(reader, step, update, own)
            same = (
                one.region_N == one.tokens.region,
                one.effect_N == one.tokens.effect,
                one.weight_N.view(np.uint32) == one.tokens.weight.view(np.uint32),
            )
            counts += [len(one.tokens), *(int(equal_N.sum()) for equal_N in same)]
    tokens, *equal = counts.tolist()
    exact = all(count == tokens for count in equal)
    names = ("region", "effect", "weight")
    told = ", ".join(f"{name} {count:,}" for name, count in zip(names, equal, strict=True))
    print(f"{own.rule.name:20} {tokens:>9,} decisions: {'all as recorded' if exact else told}", flush=True)
    return exact


def cost_of_page(run: Path) -> None:
    """Prints seconds and bytes of what a report holds of a replay, and seconds of the command."""
    begun = time.perf_counter()
    page = replay_page(run)
    summed = time.perf_counter()
    reader = TraceReader(run / "trace")
    steps = reader.steps()
    asked = []
    for step in {steps[0], steps[len(steps) // 2], steps[-1]}:
        prompts = [group(reader, step, head["group"]) for head in group_heads(reader, step)[:4]]
        asked += [(prompt, update) for prompt in prompts for update in reader.updates(step)]
    begun_groups = time.perf_counter()
    replay_groups(run, asked, page)
    told = time.perf_counter()
    from dinghai.lens.replay_candidates import default_candidates

    compare(run, default_candidates(recorded_objective(run)))
    compared = time.perf_counter()
    size = len(json.dumps(page, separators=(",", ":")))
    print(f"{run.name}: sums of the page {summed - begun:.2f} s, {size / 1000:.0f} kB; "
          f"{len(asked)} prompts and updates token for token {told - begun_groups:.2f} s; "
          f"the command's comparison {compared - told:.2f} s\n")  # fmt: skip


def cost_of_a_million() -> None:
    """Prints, for some rules, the seconds of one replay of a million tokens, and of its sums."""
    tokens = million_tokens()
    begun = time.perf_counter()
    minibatch = Minibatch(tokens)
    print(f"{TOKENS:,} tokens, {torch.get_num_threads()} threads: packed in {time.perf_counter() - begun:.2f} s")
    for rule in TIMED:
        objective = PolicyLoss(rule)
        best = [np.inf, np.inf]
        for _ in range(3):
            begun = time.perf_counter()
            replayed = minibatch.replay(objective)
            decided = time.perf_counter()
            sums_of(replayed)
            best = [min(best[0], decided - begun), min(best[1], time.perf_counter() - decided)]
        own_sums_of(replayed)
        print(f"  {rule:12} decided in {best[0]:.2f} s, summed in {best[1]:.2f} s", flush=True)


def million_tokens() -> Tokens:
    """A minibatch whose ratios lie on both sides of usual bounds."""
    rng = np.random.default_rng(0)
    logp_old_N = -rng.exponential(0.5, TOKENS).astype(np.float32)
    logp_new_N = np.minimum(logp_old_N + rng.normal(0, 0.15, TOKENS), 0).astype(np.float32)
    advantage_N = np.repeat(rng.normal(0, 1, TOKENS // LENGTH), LENGTH).astype(np.float32)
    return Tokens(
        {
            "sample": np.repeat(np.arange(TOKENS // LENGTH, dtype=np.int32), LENGTH),
            "position": np.tile(np.arange(LENGTH, dtype=np.int32), TOKENS // LENGTH),
            "token": np.zeros(TOKENS, dtype=np.int32),
            "update": np.zeros(TOKENS, dtype=np.int32),
            "logp_sampler": logp_old_N,
            "logp_old": logp_old_N,
            "logp_new": logp_new_N,
            "advantage": advantage_N,
            "weight": np.zeros(TOKENS, dtype=np.float32),
            "region": np.full(TOKENS, REGIONS.index("inside")),
            "effect": np.full(TOKENS, EFFECTS.index("kept")),
            "entropy": np.zeros(TOKENS, dtype=np.float32),
            "factor": np.ones(TOKENS, dtype=np.float32),
            "scored": np.ones(TOKENS, dtype=bool),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
