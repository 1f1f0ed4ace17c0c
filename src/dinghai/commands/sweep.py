"""`dinghai sweep`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dinghai.errors import InputError, RunFailed

if TYPE_CHECKING:
    from dinghai.config.settings import RewardSettings, TrainSettings
    from dinghai.sweep.plan import Plan

HELP = "train over a grid or a search of settings and seeds"
DESCRIPTION = """\
Trains every setting with several seeds, several runs at a time, and ends in a table and a figure with the spread over
the seeds. A run that fails does not stop the others. The same command, or `dinghai sweep FOLDER`, goes on with what is
not done; more values or seeds may be added, and runs that are complete are not trained again.

  dinghai sweep --vary objective.eps_high=0.2,0.28,0.4 --seeds 5
  dinghai sweep my.toml --vary update.lr=1e-4:1e-3:log --search random --trials 12
  dinghai sweep --vary objective.rule=grpo,cispo,sapo --update.epochs 4 --dry-run
"""
OWN_OPTIONS = frozenset(
    {"--vary", "--seeds", "--search", "--trials", "--workers", "--on", "--name", "--folder", "--metric", "--goal"}
    | {"--dry-run", "--recipe", "--reward", "--rule-file", "--help"}
)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
# Given with a sweep's folder they would contradict its plan.
_OF_A_PLAN = ("vary", "seeds", "search", "trials", "name", "folder", "recipe")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.usage = (
        "dinghai sweep [CONFIG.toml] [--vary KEY=VALUE,VALUE ...] [--seeds N] [--table.key VALUE ...]\n"
        "       dinghai sweep FOLDER"
    )
    add = parser.add_argument
    add("config", metavar="CONFIG.toml|FOLDER", nargs="?", help="settings as for train; or a sweep to go on with")
    add("--vary", metavar="KEY=VALUES", action="append", help="A,B,C; or LOW:HIGH or LOW:HIGH:log for a random search")
    add("--seeds", metavar="N", type=int, help="seeds of every setting, from run.seed on (default: 5)")
    add("--search", choices=["grid", "random"], help="every combination (default), or --trials of them drawn at random")
    add("--trials", metavar="N", type=int, help="settings that a random search draws, beside the base")
    add("--workers", metavar="N", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    add("--on", choices=["processes", "ray"], default="processes", help="this machine, or Ray Tune (extra `ray`)")
    add("--name", metavar="NAME", help="the sweep's folder in --folder (default: task and varied settings)")
    add("--folder", metavar="FOLDER", help="where sweeps are (default: sweeps)")
    add("--metric", metavar="KEY", default="held_out/accuracy", help="of metrics.jsonl (default: held_out/accuracy)")
    add("--goal", choices=["max", "min"], default="max", help="which end of the metric is good (default: max)")
    add("--dry-run", action="store_true", help="check every setting and list the trials; train nothing")
    add("--recipe", metavar="NAME", help="a paper's configuration as the base; `dinghai train --help` lists them")
    add("--reward", metavar="SOURCE[*WEIGHT]", action="append", default=[], help="as for `dinghai train`, for all runs")
    add("--rule-file", metavar="FILE.py", action="append", default=[], help="a file of rules of your own, which is run")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    for name, least in (("seeds", 1), ("trials", 1), ("workers", 1)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}, but must be at least {least}")
    if options.on == "ray":
        from dinghai.sweep.ray_pool import check_ray

        check_ray()
    from dinghai.sweep.perform import load_rules
    from dinghai.sweep.plan import PLAN_FILE

    load_rules(options.rule_file)
    if options.config is not None and Path(options.config).is_dir():
        folder = Path(options.config)
        plan = _stored(folder, options, overrides)
    else:
        plan, folder = _made(options, overrides)
    from dinghai.sweep.trials import validated

    validated(plan.as_trials(), folder)
    for line in _opening(plan, folder, options.workers):
        print(line)
    if options.dry_run:
        print("\n".join(f"  {trial.name}" for trial in plan.trials))
        return
    from dinghai.files import write_atomically
    from dinghai.sweep.plan import as_json

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN_FILE, as_json(plan))
    try:
        _train(plan, folder, options)
    except KeyboardInterrupt:
        print(f"dinghai: interrupted; `dinghai sweep {folder}` goes on with what is not done", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _train(plan: Plan, folder: Path, options: argparse.Namespace) -> None:
    """Trains what is not done, and ends in the table and the figure."""
    from dinghai.sweep.results import print_results, write_results
    from dinghai.sweep.table import check_metric
    from dinghai.sweep.trials import Outcome, run_trials

    def ended(outcome: Outcome) -> None:
        if (
            outcome.error is None
        ):  # a metric that does not exist is better known after the first run than after the last
            check_metric(outcome.folder, options.metric)

    outcomes = run_trials(
        plan.as_trials(),
        folder,
        options.workers,
        [Path(file) for file in options.rule_file],
        lambda line: print(line, flush=True),
        allowed_rewards=_named_code(options),
        ended=ended,
        on=options.on,
    )
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(failed) < len(outcomes):
        print_results(write_results(plan, outcomes, folder, options.metric, options.goal))
        print(f"`dinghai watch {folder}` lays the curves of the runs over each other.")
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(outcomes)} trials failed, the first for this: {failed[0].error}\n"
            f"{failed[0].folder}.log says more; `dinghai sweep {folder}` tries them again"
        )


def _made(options: argparse.Namespace, overrides: list[str]) -> tuple[Plan, Path]:
    """The plan that the arguments describe, and the sweep's folder."""
    from dinghai.sweep.axes import parse_axes
    from dinghai.sweep.plan import make_plan, short_keys

    if (options.search == "random") != (options.trials is not None):
        raise InputError("--search random and --trials N go together: how many settings are drawn")
    axes = parse_axes(options.vary or [])
    if options.search == "random" and not axes:
        raise InputError("--search random draws the values of what --vary names: name a setting")
    if any(o.partition("=")[0] in {"--run.name", "--run.folder"} for o in overrides):
        raise InputError("run.name and run.folder follow from the sweep: use --name and --folder")
    load = _loader(options, overrides)
    plan = make_plan(axes, options.seeds or 5, load, options.trials)
    varied = "-".join(short.replace(".", "_") for short in short_keys([axis.key for axis in axes]).values())
    name = options.name or f"{load({}).task.kind}-{varied or 'seeds'}"
    if not name.strip() or name in {".", ".."} or any(c in "/\\" or ord(c) < 32 for c in name):
        raise InputError(f"--name must be one folder's name, without slashes; got {name!r}")
    return plan, Path(options.folder or "sweeps") / name


def _loader(options: argparse.Namespace, overrides: list[str]) -> Callable[[dict[str, str]], TrainSettings]:
    """The settings of a run, given the values of varied keys, which come after all others."""
    from dinghai.config.load import load_settings
    from dinghai.config.recipes import find_recipe

    recipe = find_recipe(options.recipe) if options.recipe else None
    toml = Path(options.config) if options.config else None
    rewards = _rewards(options)

    def load(values: dict[str, str]) -> TrainSettings:
        varied = [f"--{key}={value}" for key, value in values.items()]
        settings = load_settings(toml, [*overrides, *varied], recipe)
        return settings.model_copy(update={"rewards": rewards}) if rewards else settings

    return load


def _stored(folder: Path, options: argparse.Namespace, overrides: list[str]) -> Plan:
    """The plan in the folder of a sweep. What would change it is refused."""
    from dinghai.sweep.plan import read_plan

    plan = read_plan(folder)
    given = [f"--{name}" for name in _OF_A_PLAN if getattr(options, name) is not None] + overrides
    if given:
        raise InputError(
            f"{given[0].split('=')[0]}: {folder} goes on with the settings that it has; to add to them, repeat its "
            "command with more values or seeds"
        )
    code = {source for one in plan.trials for source in (r["source"] for r in one.tables["rewards"])} - {"task"}
    missing = sorted(code - _named_code(options))
    if missing:
        raise InputError(
            f"the sweep asks for the reward {missing[0]}, which is code: if you trust it, name it again: "
            f"--reward {missing[0]}"
        )
    return plan


def _rewards(options: argparse.Namespace) -> list[RewardSettings]:
    from dinghai.tasks.rewards import parse_reward

    return [parse_reward(text) for text in options.reward]


def _named_code(options: argparse.Namespace) -> set[str]:
    """The FILE.py:FUNCTION sources that the user has named, and so allowed to run."""
    return {reward.source for reward in _rewards(options)} - {"task"}


def _opening(plan: Plan, folder: Path, workers: int) -> list[str]:
    from dinghai.sweep.plan import counted
    from dinghai.text import safe

    trials = len(plan.trials)
    which = f"{counted(len(plan.settings), 'setting')} x {counted(len(plan.seeds), 'seed')}"
    lines = [f"sweep {safe(str(folder))}: {which} = {counted(trials, 'run')}, {min(workers, trials)} at a time"]
    if len(plan.settings) > 1:
        which = "the settings without --vary" if plan.reference_is_base else "the first of them"
        lines.append(f"compared with {safe(plan.label(plan.reference))} ({which})")
    return lines + [f"warning: {safe(text)}" for text in plan.warnings]
