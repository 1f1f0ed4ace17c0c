"""`dinghai sweep`."""

from __future__ import annotations

import argparse

HELP = "train over a grid or a search of settings and seeds"
DESCRIPTION = "Ends in a table and a figure with the spread over seeds."
OWN_OPTIONS = frozenset({"--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    raise NotImplementedError
