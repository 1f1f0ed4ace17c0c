"""`dinghai doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinghai.commands.arguments import find_run
from dinghai.errors import InputError

HELP = "what went wrong in a run, and how to mend it"
DESCRIPTION = "Of a run that is alive, finished or dead: what looks wrong, the gravest first, with evidence, cause "
"and fix."
OWN_OPTIONS = frozenset({"--json", "--checks", "--markdown", "--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="the run's folder, or its name under runs/")
    parser.add_argument("--json", action="store_true", help="what was found as JSON, for other programs")
    parser.add_argument("--checks", action="store_true", help="list every check with its thresholds and their sources")
    parser.add_argument("--markdown", action="store_true", help="the checks as a page, docs/doctor.md")


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    if overrides:
        raise InputError(
            f"{overrides[0].split('=')[0]} is not an argument of `dinghai doctor`; see `dinghai doctor --help`"
        )
    if options.checks or options.markdown:
        _list_checks(options)
        return
    if options.run is None:
        raise InputError("which run? `dinghai doctor RUN`; `dinghai doctor --checks` lists what is looked for")
    _diagnose(find_run(options.run), options.json)


def _list_checks(options: argparse.Namespace) -> None:
    if options.run is not None or options.json:
        raise InputError("--checks and --markdown are about no run: leave the run and --json out")
    from dinghai.lens.doctor.listing import markdown, print_checks

    if options.markdown:
        print(markdown(), end="")
        return
    from rich.console import Console

    print_checks(Console(highlight=False))


def _diagnose(folder: Path, in_json: bool) -> None:
    from dinghai.view.diagnosis import as_json, diagnosis_of, print_diagnosis

    diagnosis = diagnosis_of(folder)
    if in_json:
        from dinghai.files import json_line

        print(json_line(as_json(diagnosis)), end="")
        return
    from rich.console import Console

    print_diagnosis(Console(highlight=False), diagnosis)
