"""`dinghai doctor`."""

from __future__ import annotations

import argparse

HELP = "what went wrong in a run, and how to mend it"
DESCRIPTION = "Of a run that is alive, finished or dead."
OWN_OPTIONS = frozenset({"--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    raise NotImplementedError
