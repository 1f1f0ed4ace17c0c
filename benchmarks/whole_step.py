"""A whole GRPO step on the CPU, against TRL's GRPOTrainer: the same model, data, reward and settings; μ = 2 updates.

    benchmarks/peers/.venv/bin/python benchmarks/whole_step.py             # the same numbers, then the time
    benchmarks/peers/.venv/bin/python benchmarks/whole_step.py --curves    # the same reward curve, over seeds

`make peers` builds that environment and runs both. The bar: at least 5 times the steps per second, and reward curves
that agree within what the seeds differ by. Each run is a process of its own; those of one side take turns with the
other's. What the runs are is in peers/: the language and its model (toy_language.py), the settings (job.py), each side.

First TRL trains on completions that it draws, and Dinghai on the same ones: were anything in the updates another
(advantage, ratio, reduction, optimiser, learning rate), the weights would part. Then both are timed on their own. The
curves are those of a smaller model, since TRL's of the model that is timed take it twenty minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))

import toy_language  # noqa: E402
from job import Job, Result, differences  # noqa: E402

FASTER = 5.0  # the bar: steps per second against TRL's
APART = 1e-3  # of the way that the weights went
# Student's t for a difference of two means of so many seeds each: two-sided 95 %, 2·(seeds - 1) degrees of freedom.
T_95 = {2: 4.30, 3: 2.78, 4: 2.45, 5: 2.31, 6: 2.23, 7: 2.18, 8: 2.14, 9: 2.12, 10: 2.10}


# --- runs ------------------------------------------------------------------------------------------------------------


def run(side: str, job: Job) -> dict[str, Any]:
    """What a process of `side` (trl, dinghai) leaves of the job."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "result.json"
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-W", "ignore", str(PEERS / f"run_{side}.py"), json.dumps(asdict(job)), str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} failed on {job}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(path.read_text(encoding="utf-8"))


def result_of(side: str, job: Job) -> Result:
    return Result(**run(side, job))


def check_same_work(job: Job, trl: Result, ours: Result) -> None:
    """Raises where the two did not do the same: weights they began with, rewards, updates, learning rate."""
    for name in ("initial_weights", "updates"):
        if getattr(trl, name) != getattr(ours, name):
            raise SystemExit(f"{name} differ: TRL {getattr(trl, name)}, Dinghai {getattr(ours, name)}")
    if {*trl.lr, *ours.lr} != {job.lr}:
        raise SystemExit(f"learning rates: TRL {trl.lr}, Dinghai {ours.lr}, wanted {job.lr}")
    for side in (trl, ours):
        if len(side.reward) != job.steps or max(side.longest) > job.new_tokens:
            raise SystemExit(f"{job.steps} batches of at most {job.new_tokens} tokens were wanted; got {side}")


# --- the same numbers ------------------------------------------------------------------------------------------------


def compare_weights(folder: Path, threads: int) -> bool:
    """Both sides train on the completions that TRL drew."""
    with tempfile.TemporaryDirectory() as place:
        job = Job(
            str(folder), steps=3, prompts=4, group_size=8, new_tokens=32, rows=32, threads=threads,
            rollouts=f"{place}/rollouts.json",
        )  # fmt: skip
        run("trl", job)
        found = run("dinghai", job)
    apart = found["apart"] / found["went"]
    held = apart <= APART
    print(
        f"On TRL's completions, {job.steps} steps of 2 updates ({job.prompts} x {job.group_size} completions): the "
        f"weights end {apart:.1e} apart, of the way they went. {verdict(held, f'at most {APART:g}')}\n"
    )
    return held


# --- the time --------------------------------------------------------------------------------------------------------


def compare_time(folder: Path, rounds: int, steps: int, rows: int, threads: int) -> bool:
    """The first step of each process is not counted."""
    sides: dict[str, list[Result]] = {"TRL": [], "Dinghai, float32": [], "Dinghai, rollout in bfloat16": []}
    for turn in range(rounds):
        job = Job(str(folder), steps=1 + steps, seed=turn, rows=rows, threads=threads)
        trl = result_of("trl", job)
        sides["TRL"].append(trl)
        for name, dtype in (("Dinghai, float32", "float32"), ("Dinghai, rollout in bfloat16", "bfloat16")):
            ours = result_of("dinghai", replace(job, dtype=dtype))
            check_same_work(job, trl, ours)
            sides[name].append(ours)
    print(
        f"{job.prompts} prompts x {job.group_size} completions of at most {job.new_tokens} tokens, {threads} threads, "
        f"TRL with {rows} rows a pass; medians of {rounds * steps} steps:\n"
    )
    print("| | s a step | rollout | the rest | CPU s | tokens a completion | longest | peak GB | steps per second |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    seconds = {}
    for name, results in sides.items():
        whole = counted(results, lambda r: r.seconds)
        rollout = counted(results, lambda r: r.rollout)
        processor = counted(results, lambda r: differences(r.processor))
        tokens = statistics.mean(counted(results, lambda r: r.tokens)) / job.completions
        longest = max(counted(results, lambda r: r.longest))
        seconds[name] = statistics.median(whole)
        rest = statistics.median([a - b for a, b in zip(whole, rollout, strict=True)])
        print(
            f"| {name} | {seconds[name]:.2f} | {statistics.median(rollout):.2f} | {rest:.2f} "
            f"| {statistics.median(processor):.1f} | {tokens:.1f} | {longest:.0f} "
            f"| {max(r.peak_gb for r in results):.1f} | {seconds['TRL'] / seconds[name]:.2f} x |",
            flush=True,
        )
    held = {name: seconds["TRL"] / seconds[name] >= FASTER for name in seconds if name != "TRL"}
    print("\n" + "\n".join(f"{name}. {verdict(ok, f'at least {FASTER:g} x')}" for name, ok in held.items()) + "\n")
    return all(held.values())


def counted(results: Sequence[Result], values: Callable[[Result], Sequence[float]]) -> list[float]:
    return [value for result in results for value in values(result)[1:]]


# --- the reward curve ------------------------------------------------------------------------------------------------


def compare_curves(folder: Path, seeds: int, steps: int, threads: int) -> bool:
    """Many steps of a small model: 8 prompts of 16 to 24 words x 8 completions of at most 32 tokens."""
    trl: list[list[float]] = []
    ours: list[list[float]] = []
    for seed in range(seeds):
        job = Job(
            str(folder), steps=steps, words="short.jsonl", prompts=8, group_size=8, new_tokens=32, lr=1e-3, seed=seed,
            threads=threads, rows=64,
        )  # fmt: skip
        theirs, own = remembered(folder / f"trl-curve-{seed}.json", job), result_of("dinghai", job)
        check_same_work(job, theirs, own)
        trl.append(theirs.reward)
        ours.append(own.reward)
    return report_curves(trl, ours)


def remembered(path: Path, job: Job) -> Result:
    """TRL's run, taken from `path` where the same was made before with the same versions."""
    key = {"job": asdict(replace(job, folder="")), "trl": version("trl"), "torch": version("torch")}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return Result(**kept["result"])
    result = result_of("trl", job)
    path.write_text(json.dumps({"key": key, "date": str(date.today()), "result": asdict(result)}), encoding="utf-8")
    return result


def report_curves(trl: list[list[float]], ours: list[list[float]]) -> bool:
    """A table of both curves, and whether their last thirds differ by more than the seeds do."""
    seeds, steps = len(trl), len(trl[0])
    print(f"Reward (per cent), mean of {seeds} seeds ± standard error:\n")
    print("| steps | TRL | Dinghai | difference / its standard error |")
    print("|---|---:|---:|---:|")
    width = max(1, steps // 10)
    gaps = []
    for begin in range(0, steps, width):
        span = slice(begin, begin + width)
        (one, se_one), (two, se_two) = (spread([statistics.mean(c[span]) for c in side]) for side in (trl, ours))
        gaps.append((two - one) / math.hypot(se_one, se_two))
        print(f"| {begin + 1}-{min(begin + width, steps)} | {one:.1f} ± {se_one:.1f} | {two:.1f} ± {se_two:.1f} "
              f"| {gaps[-1]:+.2f} |")  # fmt: skip
    last = slice(steps - steps // 3, steps)
    (one, se_one), (two, se_two) = (spread([statistics.mean(c[last]) for c in side]) for side in (trl, ours))
    error = math.hypot(se_one, se_two)
    held = abs(two - one) <= T_95[seeds] * error
    print(
        f"\nLast third: TRL {one:.2f} ± {se_one:.2f}, Dinghai {two:.2f} ± {se_two:.2f}, difference {two - one:+.2f} "
        f"= {(two - one) / error:+.2f} standard errors; largest of a row {max(gaps, key=abs):+.2f}. "
        f"{verdict(held, f'within {T_95[seeds]:g} standard errors (95 %)')}\n"
    )
    return held


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


# --- the script ------------------------------------------------------------------------------------------------------


def verdict(held: bool, bar: str) -> str:
    return f"Bar: {bar}: {'**held**' if held else '**missed**'}."


@contextlib.contextmanager
def language(folder: Path | None, size: toy_language.Size, threads: int) -> Iterator[Path]:
    """The folder with the model and the prompts, made where they are not there yet."""
    recipe = hashlib.sha256(Path(toy_language.__file__).read_bytes() + repr(size).encode()).hexdigest()[:12]
    with tempfile.TemporaryDirectory() as place:
        where = (folder or Path(place)) / recipe
        if not all((where / name).exists() for name in (toy_language.MODEL, *toy_language.PROMPTS)):
            torch.set_num_threads(threads)
            toy_language.make(where, prompts=512, size=size)
        yield where


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", action="store_true", help="the reward curves in place of the time")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side that are timed")
    parser.add_argument("--steps", type=int, help="steps timed in each process (1), or of a curve (30)")
    parser.add_argument("--seeds", type=int, default=5, choices=T_95, help="curves of each side")
    parser.add_argument("--rows", type=int, default=32, help="completions of one pass of TRL's update")
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--folder", type=Path, help="keeps the model, and TRL's curves, for the next time")
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch"))
    print(f"{date.today()}, {machine()}, {versions}, load before {os.getloadavg()[0]:.1f}\n")
    size = toy_language.SMALL if options.curves else toy_language.WHOLE
    with language(options.folder, size, options.threads) as folder:
        if options.curves:
            held = compare_curves(folder, options.seeds, options.steps or 30, options.threads)
        else:
            held = compare_weights(folder, options.threads)
            held &= compare_time(folder, options.rounds, options.steps or 1, options.rows, options.threads)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
