"""A study as a command: trains its runs, or finds them trained, and writes results/NAME.json, .svg and .md.

    python studies/NAME.py [--seeds N] [--quick] [--workers N] [--runs FOLDER]
    python studies/NAME.py --rewrite       # figure and page again from results/NAME.json; nothing is trained

Runs that are complete are used as they are, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.base import BASE, COLD_START, Tables, cold_started, merged, run_settings
from common.index import write_index
from common.page import Page, markdown
from common.results import Measures, Results, Run, read_results
from dinghai.errors import DinghaiError, InputError, RunFailed
from dinghai.files import write_atomically
from dinghai.sweep.trials import Outcome, Trial, run_trials
from dinghai.view.figure_style import as_svg, figure_settings

STUDIES = Path(__file__).resolve().parents[1]
QUICK_SEEDS, QUICK_STEPS = 2, 3


@dataclass(frozen=True)
class Arm:
    """Runs of one kind, one for each seed. `changes` are laid over the base."""

    key: str  # short, fit for a folder's name
    label: str
    changes: Tables


@dataclass(frozen=True)
class Study:
    """An experiment: which runs, what is measured of each, and what is said of the numbers.

    shared:       laid over the base for all arms
    cold_start:   laid over the common cold start
    measure:      of a run's folder
    rule_files:   files of rules of one's own
    rewards:      FILE.py:FUNCTION sources that the settings name
    """

    name: str
    arms: Sequence[Arm]
    measure: Callable[[Path], Measures]
    page: Callable[[Results], Page]
    figure: Callable[[Results], Figure]
    shared: Tables
    cold_start: Tables
    rule_files: Sequence[Path] = ()
    rewards: Sequence[str] = ()

    def trial(self, arm: Arm, seed: int, cold_start: Path, steps: int | None) -> Trial:
        """steps: None for those of the settings."""
        fewer = {} if steps is None else {"run": {"steps": steps}}
        settings = run_settings(seed, cold_start, self.shared, arm.changes, fewer)
        return Trial(f"{arm.key}-seed{seed}", settings)


def run_study(study: Study, seeds: int, steps: int | None, runs: Path, cold_starts: Path, workers: int) -> Results:
    """Trains what is not there yet in runs/NAME, and measures every run. steps: None for those of the settings."""
    models = {seed: cold_started(seed, cold_starts, study.cold_start) for seed in range(seeds)}
    pairs = [(arm, seed) for seed in range(seeds) for arm in study.arms]
    trials = [study.trial(arm, seed, models[seed], steps) for arm, seed in pairs]
    folder = runs / study.name
    outcomes = run_trials(
        trials, folder, workers, study.rule_files, lambda line: print(line, flush=True), allowed_rewards=study.rewards
    )
    measured = [_measured(study, arm, seed, outcome) for (arm, seed), outcome in zip(pairs, outcomes, strict=True)]
    return Results(
        study=study.name,
        arms={arm.key: arm.label for arm in study.arms},
        changes={arm.key: by_key(arm.changes) for arm in study.arms},
        settings=by_key(merged(COLD_START, study.cold_start)["cold_start"], "cold_start.")
        | by_key({k: v for k, v in merged(BASE, study.shared).items() if k not in ("model", "cold_start")})
        | ({} if steps is None else {"run.steps": steps}),
        made=_made(),
        runs=tuple(measured),
    )


def _measured(study: Study, arm: Arm, seed: int, outcome: Outcome) -> Run:
    if outcome.error is not None:
        print(f"{outcome.trial.name} failed: {outcome.error}")
    measures = {} if outcome.error is not None else study.measure(outcome.folder)
    return Run(arm.key, seed, outcome.error, measures)


def by_key(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= by_key(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _made() -> dict[str, Any]:
    import torch

    return {
        "date": str(date.today()),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_results(results: Results, folder: Path) -> None:
    """results/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results.as_json(), indent=None, ensure_ascii=False, allow_nan=False)
    text = text.replace(f"{STUDIES.parent}{os.sep}", "")  # the place of the checkout is of no interest elsewhere
    write_atomically(folder / f"{results.study}.json", text.replace('{"arm"', '\n{"arm"') + "\n")


def write_page(study: Study, results: Results, folder: Path) -> None:
    """results/NAME.svg and results/NAME.md, from the numbers alone."""
    with figure_settings():
        write_atomically(folder / f"{study.name}.svg", as_svg(study.figure(results)))
    write_atomically(folder / f"{study.name}.md", markdown(study.page(results), results))


def main(study: Study) -> int:
    """The command of a study."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 of each kind of run (5)")
    parser.add_argument("--workers", type=int, default=2, help="processes that train at the same time (2)")
    parser.add_argument("--runs", type=Path, default=STUDIES / "runs", help="where the runs are kept (studies/runs)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SEEDS} seeds and {QUICK_STEPS} steps, to try the command out"
    )
    chosen.add_argument("--rewrite", action="store_true", help="figure and page again from results/NAME.json")
    options = parser.parse_args()
    folder, cold_starts, quick = STUDIES / "results", options.runs / "cold-starts", options.runs / "quick"
    try:
        if options.rewrite:
            results = read_results(folder / f"{study.name}.json")
        elif options.quick:
            folder = quick / "results"
            shutil.rmtree(quick / study.name, ignore_errors=True)
            results = run_study(study, QUICK_SEEDS, QUICK_STEPS, quick, cold_starts, options.workers)
        else:
            results = run_study(study, options.seeds, None, options.runs, cold_starts, options.workers)
        if all(run.error is not None for run in results.runs):
            raise RunFailed(f"every run failed, so there is nothing to show; the first: {results.runs[0].error}")
        if not options.rewrite:
            write_results(results, folder)
            results = read_results(folder / f"{study.name}.json")
        write_page(study, results, folder)
        if not options.quick:
            write_index()
    except DinghaiError as error:
        print(f"{study.name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(f"\n{study.page(results).summary}\n{folder / study.name}.md")
    return 0
