"""What a sweep costs and what it survives, on the built-in task.

    python benchmarks/sweep.py [--runs 4] [--steps 40] [--kills 4]

1. The same runs by one process and by two: how much faster.
2. What a run costs beside its training: the start of a process, the way between two runs, the report.
3. Processes of a sweep, and the sweep itself, are killed (SIGKILL) at moments of the clock, and it is started again;
   the bar: its table and its list of runs are, to the byte, those of the sweep that nobody killed.

Prints tables; exits with status 1 if the bar of 3 is missed. About five minutes on two cores that are otherwise idle.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

FILES = ("sweep.md", "sweep.csv")


def command(folder: Path, name: str, runs: int, steps: int, workers: int) -> list[str]:
    """A sweep over two values of ε and half as many seeds as runs."""
    sweep = [sys.executable, "-m", "dinghai.cli", "sweep", "--vary", "objective.eps_high=0.2,0.28"]
    sweep += ["--seeds", str(max(1, runs // 2)), "--run.steps", str(steps), "--workers", str(workers)]
    return [*sweep, "--folder", str(folder), "--name", name]


def seconds_of(arguments: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def children_of(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [pid for pid, of in pairs if of == parent]


def killed_sweep(arguments: list[str], kills: int, about: float) -> list[str]:
    """Runs a sweep, killing in turn one of its processes and the sweep itself, until it ends by itself.

    about: seconds between two kills on average. What was killed, in words.
    """
    random.seed(0)
    said: list[str] = []
    while True:
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(said) < kills:
            try:
                process.wait(about * random.uniform(0.5, 1.5))
            except subprocess.TimeoutExpired:
                # Not a process that dies twice of the same run, which would count as the run's fault.
                children = children_of(process.pid)
                if len(said) % 2 == 0 and children:
                    os.kill(random.choice(children), signal.SIGKILL)
                    said.append("a process")
                else:
                    process.kill()
                    process.wait()
                    said.append("the sweep")
        if process.wait() == 0:
            return said


def overheads(folder: Path) -> dict[str, float]:
    """Seconds of the start of a process, of the way between two runs, and of a report, in small runs."""
    from dinghai.config.load import settings_to_json
    from dinghai.sweep.perform import Job, Report
    from dinghai.sweep.pool import perform_in_processes
    from dinghai.sweep.trials import Trial, validated
    from dinghai.view.report import write_report

    tiny = {"model": {"hidden_size": 16, "heads": 2}, "cold_start": {"steps": 3}, "task": {"held_out": 8}}
    trials = [Trial(f"tiny-{n}", {**tiny, "run": {"steps": 2, "seed": n}}) for n in range(8)]
    settings = validated(trials, folder / "tiny")
    (folder / "tiny").mkdir()
    jobs = [Job(name, str(folder / "tiny"), settings_to_json(one)) for name, one in settings.items()]
    ends: list[tuple[float, Report]] = []
    begun = time.perf_counter()
    perform_in_processes(jobs, 1, (), (), lambda report: ends.append((time.perf_counter(), report)))
    between = [later[0] - sooner[0] - later[1].seconds for sooner, later in itertools.pairwise(ends)]
    again = time.perf_counter()
    write_report(folder / "one" / "eps_high-0.2_seed-0")
    return {
        "start of a process (imports)": ends[0][0] - begun - ends[0][1].seconds,
        "from the end of a run to the next one's beginning": sum(between) / len(between),
        "report of a run": time.perf_counter() - again,
    }


def machine() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4, help="an even number")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=4)
    options = parser.parse_args()
    print(f"{date.today()}, {machine()}, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        one, two = (
            seconds_of(command(folder, name, options.runs, options.steps, workers))
            for name, workers in (("one", 1), ("two", 2))
        )
        print(f"| {options.runs} runs of {options.steps} steps | seconds |\n|---|---:|")
        print(f"| one process | {one:.1f} |\n| two processes | {two:.1f} ({one / two:.2f} x) |\n", flush=True)
        print("| beside the training | seconds |\n|---|---:|")
        for what, seconds in overheads(folder).items():
            print(f"| {what} | {seconds:.3f} |", flush=True)
        killed = killed_sweep(command(folder, "killed", options.runs, options.steps, 2), options.kills, two / 6)
        differing = [f for f in FILES if (folder / "killed" / f).read_bytes() != (folder / "two" / f).read_bytes()]
        alike = [f for f in FILES if (folder / "one" / f).read_bytes() == (folder / "two" / f).read_bytes()]
    print(f"\nkilled: {', '.join(killed)}; {', '.join(differing) or 'nothing'} differs from the undisturbed sweep's")
    print(f"one process and two: {'the same bytes' if len(alike) == len(FILES) else 'other bytes'}")
    return 1 if differing or len(set(killed)) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
