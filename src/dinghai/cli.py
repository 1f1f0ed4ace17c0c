"""The command line: `dinghai train`, `dinghai resume RUN`, `dinghai report RUN`, `dinghai watch RUN`, `dinghai rules`,
`dinghai explain`, and the commands of `dinghai.commands`.

Exit status: 0 done, 1 the run failed, 2 the user's input is wrong, 130 interrupted. An error is one or two lines on
stderr; `--debug` shows the traceback. Nothing heavy is imported before the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dinghai import __version__
from dinghai.commands import TUNING
from dinghai.commands.arguments import find_run, load_rule_files, rule_parameters
from dinghai.errors import InputError

if TYPE_CHECKING:
    from dinghai.config.settings import RewardSettings

_DESCRIPTION = "Train language models with PPO and GRPO, and see what the clip does to every token's gradient."
_EXAMPLES = """\
examples:
  dinghai train                               the built-in task and model, in about a minute
  dinghai train my.toml --recipe dapo         your settings over a paper's; `dinghai train --help` lists them all
"""
_COMMANDS = ("train", "resume", "report", "watch", "explain", "rules", *TUNING)
# Commands that take settings or parameters by name, and the options that are none of those.
_OWN_OPTIONS = {
    "train": {"--reward", "--recipe", "--rule-file", "--help"},
    "rules": {"--markdown", "--rule-file", "--help"},
    "explain": {
        *("--ratio", "--advantage", "--probability", "--rule", "--rule-file", "--lang", "--open", "--page", "--help")
    },
    **{name: command.own_options for name, command in TUNING.items()},
}
_RULE_FILE_HELP = "a file that registers rules of your own, which is then run"
_REWARD_HELP = "`task`, or FILE.py:FUNCTION, which is then run; several are added (replaces the default, `task`)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status. `arguments` default to those of the process."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        _run_command(argv)
        sys.stdout.flush()
        return 0
    except SystemExit as end:  # argparse has printed help or the version
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        from dinghai.cli_errors import report_error

        return report_error(error, debug)


def _run_command(argv: list[str]) -> None:
    parser = _parser()
    if not argv:
        parser.print_help()
        return
    _check_command(argv[0])
    overrides: list[str] = []
    if argv[0] in _OWN_OPTIONS:
        from dinghai.config.overrides import split_overrides

        found, argv = split_overrides(argv, other=_OWN_OPTIONS[argv[0]])
        overrides = [o.token() for o in found]
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(_unknown_argument(options.command, unknown[0]))
    if options.command in TUNING:
        TUNING[options.command].run(options, overrides)
    elif options.command == "train":
        _train(options, overrides)
    elif options.command == "resume":
        _resume(find_run(options.run), options)
    elif options.command == "rules":
        load_rule_files(options.rule_file)
        _show_rules(options.name, overrides, options.markdown)
    elif options.command == "explain":
        load_rule_files(options.rule_file)
        _explain(options, overrides)
    elif options.command == "watch":
        _watch(options)
    else:
        _write_report(find_run(options.run), options.figures)


# --- commands --------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace, overrides: list[str]) -> None:
    from dinghai.config.load import load_settings
    from dinghai.config.recipes import find_recipe, recipe_lines

    recipe = find_recipe(options.recipe) if options.recipe else None
    settings = load_settings(Path(options.config) if options.config else None, overrides, recipe)
    if recipe:
        print("\n".join([*recipe_lines(recipe, settings), ""]))
    named = _parse_rewards(options.reward)
    if named:
        settings = settings.model_copy(update={"rewards": named})
    rule_code = load_rule_files(options.rule_file)
    from dinghai.train.run import train

    train(settings, _code_of(named), rule_code)


def _resume(run: Path, options: argparse.Namespace) -> None:
    named = _parse_rewards(options.reward)
    rule_code = load_rule_files(options.rule_file)
    from dinghai.train.run import resume

    resume(run, _code_of(named), named or None, rule_code)


def _write_report(run: Path, with_figures: bool) -> None:
    from dinghai.view.report import write_report

    print(write_report(run))
    if with_figures:
        from dinghai.view.figures import write_figures

        print("\n".join(str(path) for path in write_figures(run)))


def _watch(options: argparse.Namespace) -> None:
    from dinghai.view.server import serve

    runs = [Path(text) if Path(text).is_dir() else find_run(text) for text in options.run]
    serve(runs, host=options.host, port=options.port, token=options.token, open_browser=options.open)


def _explain(options: argparse.Namespace, overrides: list[str]) -> None:
    from dinghai.catalogue.explain import explain

    explain(
        ratio=options.ratio,
        advantage=options.advantage,
        rule=options.rule,
        given=rule_parameters(overrides),
        probability=options.probability,
        language=options.lang,
        page=Path(options.page) if options.page else None,
        open_browser=options.open,
    )


def _show_rules(name: str | None, overrides: list[str], as_markdown: bool) -> None:
    from rich.console import Console

    from dinghai.catalogue.markdown import markdown
    from dinghai.catalogue.terminal import print_rule, print_rules
    from dinghai.objective import find_rule

    if as_markdown:
        print(markdown(), end="")
    elif name is None:
        print_rules(Console())
    else:
        print_rule(Console(), find_rule(name), rule_parameters(overrides))


def _parse_rewards(texts: list[str]) -> list[RewardSettings]:
    if not texts:
        return []
    from dinghai.tasks.rewards import parse_reward

    return [parse_reward(text) for text in texts]


def _code_of(rewards: list[RewardSettings]) -> set[str]:
    """The FILE.py:FUNCTION sources that the user has named, and so allowed to run."""
    return {r.source for r in rewards if r.source != "task"}


# --- arguments -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, with errors as InputError instead of a page of usage, and the settings in the help where asked for."""

    def __init__(self, lists_settings: bool = False, **options: Any) -> None:
        # Raw: the examples keep their lines. No abbreviations: they would break as options are added.
        options |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**options)
        self._lists_settings = lists_settings

    def format_help(self) -> str:
        if not self._lists_settings:
            return super().format_help()
        from dinghai.config.help import settings_help

        return f"{super().format_help()}\n{settings_help(_width())}"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def _recipe_help() -> str:
    from dinghai.config.recipes import RECIPES

    return f"a paper's configuration, which a file or a flag may override: {', '.join(RECIPES)}"


def _width() -> int:
    return min(100, max(80, shutil.get_terminal_size((90, 24)).columns))


def _parser() -> _Parser:
    parser = _Parser(prog="dinghai", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"dinghai {__version__}", help="show the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    train = commands.add_parser(
        "train",
        usage="dinghai train [CONFIG.toml] [--recipe NAME] [--table.key VALUE ...] [--reward SOURCE[*WEIGHT] ...]",
        help="train a model (with no argument: the built-in task and model)",
        description="Settings come from the defaults, then the recipe, then CONFIG.toml, then the command line.",
        lists_settings=True,
    )
    train.add_argument("config", metavar="CONFIG.toml", nargs="?", help="settings, in the tables listed below")
    resume = commands.add_parser("resume", help="continue a run from its last checkpoint")
    report = commands.add_parser("report", help="write a run's report.html")
    for command in (resume, report):
        command.add_argument("run", metavar="RUN", help="the run's folder, or its name under runs/")
    report.add_argument("--figures", action="store_true", help="also write each figure as SVG and PNG, for papers")
    _add_watch(commands)
    _add_explain(commands)
    train.add_argument("--recipe", metavar="NAME", help=_recipe_help())
    rules = commands.add_parser(
        "rules",
        usage="dinghai rules [NAME [--PARAMETER VALUE ...]] [--markdown] [--rule-file FILE.py]",
        help="list the rules, or explain one",
        description="Every rule of the registry with its weight and parameters, or one of them with its formulas.",
    )
    rules.add_argument("name", metavar="NAME", nargs="?", help="the rule to explain; by default all are listed")
    rules.add_argument("--markdown", action="store_true", help="the whole family as a page, docs/rules.md")
    for name, tuning in TUNING.items():
        tuning.add_arguments(commands.add_parser(name, help=tuning.help, description=tuning.description))
    for command in (train, resume, rules):
        command.add_argument("--rule-file", metavar="FILE.py", action="append", default=[], help=_RULE_FILE_HELP)
    for command in (train, resume):
        command.add_argument("--reward", metavar="SOURCE[*WEIGHT]", action="append", default=[], help=_REWARD_HELP)
    return parser


def _add_watch(commands: Any) -> None:
    watch = commands.add_parser("watch", help="serve a run as a page that grows while it trains")
    watch.add_argument("run", metavar="RUN", nargs="+", help="folders or names of runs, or a folder that holds runs")
    watch.add_argument("--port", type=int, help="default: 8712, or the next free one")
    watch.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="another than this machine needs --token")
    watch.add_argument("--token", metavar="TEXT", help="what a reader has to know, for another address")
    watch.add_argument("--open", action="store_true", help="open the browser")


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        usage="dinghai explain [--ratio R] [--advantage A] [--probability P] [--rule NAME [--PARAMETER VALUE ...]] "
        "[--lang en|zh] [--open] [--page FILE]",
        help="what the clip does to a token: in numbers, or as a page",
        description="With --ratio it answers here, for one sign of the advantage or both; with --open in the browser.",
    )
    explain.add_argument("--ratio", metavar="R", type=float, help="importance ratio new/old of the token, above 0")
    explain.add_argument("--advantage", metavar="A", type=float, help="advantage; without it, both 1 and -1")
    explain.add_argument(
        "--probability", metavar="P", type=float, help="π_old of the token, for rules that look at it (default: 0.05)"
    )
    explain.add_argument("--rule", metavar="NAME", default="ppo", help="a rule of `dinghai rules` (default: ppo)")
    explain.add_argument("--rule-file", metavar="FILE.py", action="append", default=[], help=_RULE_FILE_HELP)
    explain.add_argument("--lang", choices=["en", "zh"], help="English or 中文; by default that of the system")
    explain.add_argument("--open", action="store_true", help="open the page in the browser")
    explain.add_argument("--page", metavar="FILE", help="write the page, one file that works offline")


def _check_command(word: str) -> None:
    if word in _COMMANDS or word in {"-h", "--help", "--version"}:
        return
    from dinghai.config.messages import did_you_mean, one_line

    near = did_you_mean(word, _COMMANDS) or f"; there are {', '.join(_COMMANDS)}"
    raise InputError(f"there is no command {one_line(word)}{near}")


def _unknown_argument(command: str, argument: str) -> str:
    if command == "resume" and argument.startswith("--"):
        return f"{argument}: a resumed run keeps its settings; to change them, start a new one with `dinghai train`"
    return f"{argument} is not an argument of `dinghai {command}`; see `dinghai {command} --help`"


if __name__ == "__main__":
    sys.exit(main())
