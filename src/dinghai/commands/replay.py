"""`dinghai replay`."""

from __future__ import annotations

import argparse

HELP = "what another epsilon or rule would have decided"
DESCRIPTION = "From the trace, without the model."
OWN_OPTIONS = frozenset({"--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    raise NotImplementedError
