"""Proves the first run: `dinghai train` with no settings but a seed, once for each of ten seeds.

    python benchmarks/first_run.py [CONFIG.toml] [--seeds 10]

Each run is a new process, imports and report included. The bar: at most 60 s on two cores, held-out accuracy at most
50 % after the cold start and at least 90 % at the end, for at least 9 of 10 seeds. Prints a table; exits with status 1
if the bar is missed.
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

SECONDS, BEFORE, AFTER, SHARE = 60.0, 0.5, 0.9, 0.9


def run_once(seed: int, folder: Path, config: list[str]) -> dict[str, float]:
    """One run: wall-clock seconds, and the held-out accuracy before and after reinforcement learning."""
    name = f"seed-{seed}"
    command = [sys.executable, "-m", "dinghai.cli", "train", *config, "--run.seed", str(seed), "--run.name", name]
    begun = time.perf_counter()
    subprocess.run([*command, "--run.folder", str(folder)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    accuracy = [line["held_out/accuracy"] for line in lines if "held_out/accuracy" in line]
    signal = sum(line.get("tokens/signal", 0) for line in lines)
    stopped = sum(line.get("clip/stopped_fraction", 0) * line.get("tokens/signal", 0) for line in lines) / signal
    return {"seed": seed, "seconds": seconds, "before": accuracy[0], "after": accuracy[-1], "stopped": stopped}


def holds(run: dict[str, float]) -> bool:
    return run["seconds"] <= SECONDS and run["before"] <= BEFORE and run["after"] >= AFTER


def machine() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="*", help="a settings file, e.g. examples/ppo.toml; none: the defaults")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print(f"{date.today()}, {machine()}, Python {platform.python_version()}\n")
    print("| seed | seconds | held-out before | held-out after | tokens stopped | bar |")
    print("|---:|---:|---:|---:|---:|---|")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            run = run_once(seed, Path(folder), options.config)
            runs.append(run)
            verdict = "held" if holds(run) else "missed"
            print(
                f"| {seed} | {run['seconds']:.1f} | {run['before']:.1%} | {run['after']:.1%} | {run['stopped']:.1%} "
                f"| {verdict} |",
                flush=True,
            )
    held = sum(map(holds, runs))
    print(f"\nheld by {held} of {len(runs)} seeds; slowest {max(r['seconds'] for r in runs):.1f} s")
    return 0 if held >= SHARE * len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
