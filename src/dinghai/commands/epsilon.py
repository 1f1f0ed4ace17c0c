"""`dinghai epsilon`."""

from __future__ import annotations

import argparse

HELP = "a recommendation for epsilon, with its reasons"
DESCRIPTION = "From a recorded run."
OWN_OPTIONS = frozenset({"--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    raise NotImplementedError
