"""The commands that tune and debug: `replay`, `epsilon`, `doctor`, `sweep`. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from dinghai.commands import doctor, epsilon, replay, sweep


@dataclass(frozen=True)
class Command:
    """A command: its arguments, and what it does with them and with the settings or parameters given by name."""

    help: str  # a line in the list of commands
    description: str
    own_options: frozenset[str]  # every other --NAME is a setting or parameter by name
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], None]


TUNING = {
    module.__name__.rpartition(".")[2]: Command(
        module.HELP, module.DESCRIPTION, module.OWN_OPTIONS, module.add_arguments, module.run
    )
    for module in (replay, epsilon, doctor, sweep)
}
