"""Proves that the doctor leaves healthy runs in peace, and finds the fault in sick ones.

    python benchmarks/doctor.py [--seeds 10] [--recipes ppo dapo gspo cispo] [--folder FOLDER] [RUN ...]

Trains the built-in task with default settings and so many seeds, then with the settings of some papers, and lets every
check look at each run whole and, as during training, after its first 1, 2, 4, 8, … steps. With default settings nothing
may be found; with the others nothing above a note. Then trains runs that each have one fault and prints what is found
first, which must be that fault. RUN: healthy runs that are there already, instead of training some.

Each training takes half a minute. Exits with status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinghai.lens.doctor.case import QUICK, Case
from dinghai.lens.doctor.diagnose import CHECKS, examine
from dinghai.lens.doctor.finding import Finding, Grade
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.summary import load_config, load_run_metrics

REWARDS = """
def constant(completions, **others):
    return [0.5] * len(completions)

def longer(completions, **others):
    return [len(text) / 20 for text in completions]

def shorter(completions, **others):
    return [-len(text) / 20 for text in completions]
"""
# The fault -> its settings, and the checks of which one must come first.
FAULTS: dict[str, tuple[list[str], set[str]]] = {
    "learning rate x 30": (["--update.lr", "0.012"], {"kl-blow-up", "learning-rate-too-high"}),
    "learning rate 1e-9": (["--update.lr", "1e-9"], {"learning-rate-too-low"}),
    "epsilon 1e-6": (
        ["--objective.eps_low", "1e-6", "--objective.eps_high", "1e-6"],
        {"epsilon-in-noise", "wrong-unit"},
    ),
    "token epsilon for sequences": (
        ["--objective.rule", "gspo", "--objective.eps_low", "0.2", "--objective.eps_high", "0.2"],
        {"wrong-unit"},
    ),
    "one update a batch": (["--update.epochs", "1", "--update.minibatches", "1"], {"epsilon-cannot-act"}),
    "constant reward": (["--reward", "{rewards}:constant"], {"reward-never-varies"}),
    "rewards that cancel": (["--reward", "{rewards}:longer", "--reward", "{rewards}:shorter"], {"rewards-cancel"}),
    "completions cut": (["--rollout.max_new_tokens", "8"], {"truncated-completions"}),
}
FAULTY_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--recipes", nargs="*", default=["ppo", "dapo", "gspo", "cispo"])
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay (default: a temporary one)")
    parser.add_argument("runs", metavar="RUN", nargs="*", type=Path)
    options = parser.parse_args()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as aside:
        folder = options.folder or Path(aside)
        healthy = options.runs or train_healthy(folder, options.seeds, options.recipes)
        missed = tell_healthy(console, healthy)
        if not options.runs:
            missed += tell_faulty(console, folder)
    for line in missed:
        console.print(Text(f"missed: {line}", style="red"))
    sys.exit(1 if missed else 0)


# --- runs ------------------------------------------------------------------------------------------------------------


def train_healthy(folder: Path, seeds: int, recipes: list[str]) -> list[Path]:
    runs = [train(folder, f"default-{seed}", ["--run.seed", str(seed)]) for seed in range(seeds)]
    return runs + [train(folder, recipe, ["--recipe", recipe]) for recipe in recipes]


def train(folder: Path, name: str, settings: list[str]) -> Path:
    """A run, in a process of its own; one that is there is not trained again."""
    if not (folder / name / "report.html").is_file():
        command = [sys.executable, "-m", "dinghai.cli", "train", "--run.folder", str(folder), "--run.name", name]
        done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
    return folder / name


def looked_at(run: Path, until: int | None) -> tuple[list[Finding], float]:
    """What is found in a run whole, or as during training after its first steps; and the processor seconds of it."""
    metrics = load_run_metrics(run)
    config, _ = load_config(run)
    begun = time.process_time()
    if until is None:
        diagnosis = examine(Case(run, config or {}, metrics))
    else:
        rows = [row for row in metrics.rows if row["step"] <= until]
        diagnosis = examine(Case(run, config or {}, Metrics(rows), QUICK), early=True)
    for check, error in diagnosis.failed:
        sys.exit(f"{run}: the check {check.name} failed: {error!r}")
    return diagnosis.findings, time.process_time() - begun


def early_steps(run: Path) -> list[int]:
    steps = load_run_metrics(run).rows[-1]["step"]
    return [2**power for power in range(steps.bit_length()) if 2**power <= steps]


# --- tables ----------------------------------------------------------------------------------------------------------


def tell_healthy(console: Console, runs: list[Path]) -> list[str]:
    """Prints what is found in healthy runs; returns what is too much."""
    table = Table(title=f"healthy runs, {len(CHECKS)} checks", title_justify="left")
    for heading in (
        "run",
        "found in it whole",
        "found during training",
        "ms whole",
        "ms in training",
        "of its steps' time",
    ):
        table.add_column(heading)
    missed = []
    for run in runs:
        findings, seconds = looked_at(run, None)
        early = {step: looked_at(run, step) for step in early_steps(run)}
        spent = sum(took for _, took in early.values())
        training = sum(row.get("seconds/step", 0.0) for row in load_run_metrics(run).training)
        found_early = [(step, one) for step, (found, _) in early.items() for one in found]
        table.add_row(
            run.name,
            ", ".join(named(one) for one in findings) or "nothing",
            ", ".join(f"{named(one)} at {step}" for step, one in found_early) or "nothing",
            f"{1e3 * seconds:.0f}",
            f"{1e3 * spent:.0f}",
            f"{spent / training:.2%}" if training else "",
        )
        worst = Grade.NOTE if not run.name.startswith("default") else 0
        found = [*findings, *(one for _, one in found_early)]
        missed += sorted({f"{run.name}: {named(one)}" for one in found if one.grade > worst})
    console.print(table)
    return missed


def tell_faulty(console: Console, folder: Path) -> list[str]:
    """Prints what is found first in runs with a fault; returns where it is not the fault."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARDS)
    table = Table(title="runs with a fault", title_justify="left")
    for heading in ("fault", "found first", "then", "first told while training"):
        table.add_column(heading)
    missed = []
    for fault, (settings, expected) in FAULTS.items():
        given = [one.format(rewards=rewards) for one in settings]
        run = train(folder, fault.replace(" ", "-"), ["--run.steps", str(FAULTY_STEPS), *given])
        findings, _ = looked_at(run, None)
        first = next((one.check for one in findings), "nothing")
        told = next(((step, found[0]) for step in early_steps(run) if (found := looked_at(run, step)[0])), None)
        table.add_row(
            fault,
            first,
            ", ".join(one.check for one in findings[1:]),
            f"{told[1].check}, step {told[0]}" if told else "nothing",
        )
        if first not in expected:
            missed.append(f"{fault}: {first} was found first, not {' or '.join(sorted(expected))}")
    console.print(table)
    return missed


def named(finding: Finding) -> str:
    return f"{finding.check} ({finding.grade.name.lower()})"


if __name__ == "__main__":
    main()
