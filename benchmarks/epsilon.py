"""Holds `dinghai epsilon` to account: trains at some ε, asks for advice, trains again with it from the same seed.

    python benchmarks/epsilon.py [--seeds 5] [--steps 40] [--workers 2] [--folder FOLDER]

The starts are runs of the built-in task as they come (GRPO at 0.2, GSPO at 3e-4 and 4e-4) and with an ε that is badly
chosen: far too tight, far too wide, in the unit of another ratio. The bar: with the advised ε the held-out accuracy is
not below that with the rule's default ε by more than the 95 % interval of the paired difference over seeds. Prints a
table, writes it into docs/epsilon.md, and exits with status 1 if the bar is missed. What was trained in FOLDER is not
trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dinghai.files import write_atomically
from dinghai.lens.epsilon import advise
from dinghai.lens.epsilon_advice import Advice
from dinghai.sweep.intervals import Interval, paired
from dinghai.sweep.trials import Outcome, Trial, run_trials

PAGE = Path(__file__).parents[1] / "docs" / "epsilon.md"
BEGIN, END = "<!-- benchmarks/epsilon.py writes from here -->", "<!-- to here -->"

Bounds = tuple[float, float]  # eps_low, eps_high


@dataclass(frozen=True)
class Start:
    """Where a user may stand before asking: a rule and the ε that it was given."""

    what: str
    rule: str
    given: Bounds


DEFAULTS: dict[str, Bounds] = {"grpo": (0.2, 0.2), "gspo": (3e-4, 4e-4)}
STARTS = (
    Start("GRPO, its default", "grpo", DEFAULTS["grpo"]),
    Start("GRPO, far too tight", "grpo", (0.005, 0.005)),
    Start("GRPO, far too wide", "grpo", (5.0, 5.0)),
    Start("GSPO, its default", "gspo", DEFAULTS["gspo"]),
    Start("GSPO, ε in the unit of token ratios", "gspo", (0.2, 0.2)),
)

Accuracies = dict[int, tuple[float, float]]  # seed -> held-out accuracy at the end, and the mean while it trained


def trial_of(rule: str, bounds: Bounds, seed: int, steps: int) -> Trial:
    """The same settings have the same name, so that they are trained once."""
    low, high = bounds
    settings: dict[str, Any] = {
        "run": {"seed": seed, "steps": steps},
        "objective": {"rule": rule, "eps_low": low, "eps_high": high},
        "evaluation": {"every": max(1, steps // 4)},
    }
    return Trial(f"{rule}-{low:g}-{high:g}-seed-{seed}", settings)


def train(trials: list[Trial], folder: Path, workers: int) -> dict[str, Outcome]:
    """Trains the trials, each once, and gives their outcomes by name."""
    once = list({trial.name: trial for trial in trials}.values())
    outcomes = {outcome.trial.name: outcome for outcome in run_trials(once, folder, workers, tell=tell)}
    for outcome in outcomes.values():
        if outcome.state == "failed":
            raise SystemExit(f"{outcome.trial.name} failed: {outcome.error}")
    return outcomes


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def accuracy(run: Path) -> tuple[float, float]:
    """Held-out accuracy at the end, and its mean over the evaluations while it trained."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = [line["held_out/accuracy"] for line in lines if "held_out/accuracy" in line][1:]
    return found[-1], statistics.fmean(found)


def advised(advice: Advice, given: Bounds) -> Bounds:
    """The bounds that a user has who follows the advice."""
    if advice.nothing is not None:
        return given
    low, high = (advice.changes.get(name, value) for name, value in zip(("eps_low", "eps_high"), given, strict=True))
    return low, high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to train, and to find what was trained before")
    parser.add_argument("--dry", action="store_true", help="leave docs/epsilon.md as it is")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        lines, held = measure(folder, range(options.seeds), options.steps, options.workers)
    took = "" if options.folder else f", {(time.perf_counter() - begun) / 60:.0f} minutes"
    head = f"{date.today()}, {machine()}, Python {platform.python_version()}"
    lines = [f"{head}; {options.steps} steps a run, seeds 0 to {options.seeds - 1}{took}.", "", *lines]
    print("\n".join(lines))
    if not options.dry:
        before, rest = PAGE.read_text("utf-8").split(BEGIN)
        write_atomically(PAGE, f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.split(END)[1]}")
    return 0 if held else 1


def measure(folder: Path, seeds: range, steps: int, workers: int) -> tuple[list[str], bool]:
    """Trains everything. The lines of the tables, and whether the bar is held."""
    first = {(start, seed): trial_of(start.rule, start.given, seed, steps) for start in STARTS for seed in seeds}
    outcomes = train(list(first.values()), folder, workers)
    advices = {key: advise(outcomes[trial.name].folder) for key, trial in first.items()}
    second = {
        (start, seed): trial_of(start.rule, advised(advice, start.given), seed, steps)
        for (start, seed), advice in advices.items()
    }
    outcomes |= train(list(second.values()), folder, workers)

    def reached(trials: dict[int, Trial]) -> Accuracies:
        return {seed: accuracy(outcomes[trial.name].folder) for seed, trial in trials.items()}

    lines = [
        "| start | ε given | ε advised | held-out, given | advised | default | advised - given | advised - default |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    on_the_way = [
        "| start | held-out while training, given | advised | default | advised - given | advised - default |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    ranges = [
        "| start | eps_low takes, as given | may lie from | to | eps_high takes, as given | may lie from | to |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    held = True
    for start in STARTS:
        given = reached({seed: first[start, seed] for seed in seeds})
        after = reached({seed: second[start, seed] for seed in seeds})
        default = reached({seed: trial_of(start.rule, DEFAULTS[start.rule], seed, steps) for seed in seeds})
        chosen = [advised(advices[start, seed], start.given) for seed in seeds]
        cells = [columns(given, after, default, which) for which in (0, 1)]
        values = f"{bounds_text([start.given])} | {bounds_text(chosen)}"
        lines.append(f"| {start.what} | {values} | {' | '.join(cells[0])} |")
        on_the_way.append(f"| {start.what} | {' | '.join(cells[1])} |")
        ranges.append(f"| {start.what} | {' | '.join(range_texts([advices[start, seed] for seed in seeds]))} |")
        held &= not difference(after, default, 0).below_zero
    verdict = "held" if held else "MISSED"
    bar = f"The bar (with the advised ε at the end at least as good as with the rule's default): {verdict}."
    return [*lines, "", bar, "", *on_the_way, "", *ranges], held


def columns(given: Accuracies, after: Accuracies, default: Accuracies, which: int) -> list[str]:
    means = [f"{statistics.fmean(pair[which] for pair in one.values()):.1%}" for one in (given, after, default)]
    return [*means, *(points(difference(after, other, which)) for other in (given, default))]


def difference(one: Accuracies, other: Accuracies, which: int) -> Interval:
    """Paired by seed; `which`: 0 at the end, 1 while it trained."""
    sides = [{seed: pair[which] for seed, pair in side.items()} for side in (one, other)]
    return paired(sides[0], sides[1])


def points(found: Interval) -> str:
    """In percentage points, with the 95 % interval."""
    if found.low == found.high == found.mean == 0:
        return "0, the same runs"
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def bounds_text(chosen: list[Bounds]) -> str:
    """eps_low / eps_high, each as a span where seeds differ."""
    return " / ".join(span(list(values)) for values in zip(*chosen, strict=True))


def span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def range_texts(advices: list[Advice]) -> list[str]:
    """Of each bound the share of the gradient that it took, and where its range begins and ends, over the seeds."""
    texts = []
    for place in (0, 1):
        ends = [advice.bounds[place] for advice in advices if advice.nothing is None]
        taken = [one.values[one.bound.value].taken.gradient for one in ends]
        texts.append(f"{statistics.fmean(taken):.1%}" if taken else "-")
        for values in ([one.low for one in ends], [one.high for one in ends]):
            known = [value for value in values if value is not None]
            texts.append(span(known) if known else "-")
    return texts


def machine() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
