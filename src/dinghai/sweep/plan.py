"""The plan of a sweep: which settings are compared, over which seeds, and so which trials there are.

FOLDER/plan.json holds it, so that a sweep can be continued by naming its folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinghai import files
from dinghai.config.messages import one_line
from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError
from dinghai.sweep.axes import Axis
from dinghai.sweep.check import by_key, differing, resolved
from dinghai.sweep.trials import Trial

PLAN_FILE = "plan.json"
FORMAT = 1

_MOST_TRIALS = 10_000
_LONGEST_NAME = 100  # characters of a trial's folder


@dataclass(frozen=True)
class Planned:
    """One trial: a setting of the plan with a seed."""

    name: str
    setting: int
    seed: int
    tables: dict[str, Any]  # every setting but run.name and run.folder


@dataclass(frozen=True)
class Plan:
    """What is compared.

    settings:       for each, the value of every varied key, as text
    reference:      the setting that the others are compared with
    reference_is_base: whether that is what the other arguments say without --vary; else it is the first
    warnings:       what to say of settings before they are trained, each once
    """

    axes: list[Axis]
    settings: list[dict[str, str]]
    seeds: list[int]
    trials: list[Planned]
    reference: int
    reference_is_base: bool
    search: Literal["grid", "random"]
    warnings: list[str]

    def as_trials(self) -> list[Trial]:
        return [Trial(planned.name, planned.tables) for planned in self.trials]

    def label(self, setting: int) -> str:
        """`eps_high 0.28, lr 0.001`."""
        return ", ".join(f"{short} {self.settings[setting][key]}" for key, short in self.short_keys().items())

    def short_keys(self) -> dict[str, str]:
        """The varied keys, each with its last part, or whole where two share it."""
        return short_keys([axis.key for axis in self.axes])


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key with its last part, or with all of it where another has the same last part."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def counted(number: int, what: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def make_plan(
    axes: list[Axis],
    seeds: int,
    load: Callable[[dict[str, str]], TrainSettings],
    trials: int | None = None,
) -> Plan:
    """The plan of a grid over all axes, or of `trials` settings drawn at random; each with every seed.

    load:   the settings of a run, given the values of some keys; {} for the base
    trials: how many settings a random search draws; None for a grid

    The first seed is the base's run.seed. A random search has the base among its settings. A setting that is drawn does
    not depend on how many are drawn, so that a search can be extended.

    Raises InputError for settings that are not valid.
    """
    base = load({})
    if trials is None:
        chosen = _grid(axes)
    else:
        here = by_key(resolved(base)[0].model_dump(mode="json"))
        chosen = [{axis.key: _as_text(_value(here, axis.key)) for axis in axes}]
        chosen += _drawn(axes, trials, base.run.seed)
    if len(chosen) * seeds > _MOST_TRIALS:
        raise InputError(f"{len(chosen):,} settings x {seeds} seeds are more than {_MOST_TRIALS:,} trials: vary less")
    all_seeds = list(range(base.run.seed, base.run.seed + seeds))
    loaded = [base if trials is not None and n == 0 else load(values) for n, values in enumerate(chosen)]
    settings, said = zip(*map(resolved, loaded), strict=True)
    equal = [n for n, one in enumerate(settings) if not differing(one, resolved(base)[0])]
    names = _names(axes, chosen)
    return Plan(
        axes=axes,
        settings=chosen,
        seeds=all_seeds,
        trials=[
            Planned(f"{names[n]}_seed-{seed}", n, seed, _tables(one, seed))
            for n, one in enumerate(settings)
            for seed in all_seeds
        ],
        reference=equal[0] if equal else 0,
        reference_is_base=bool(equal),
        search="grid" if trials is None else "random",
        warnings=list(dict.fromkeys(itertools.chain(*said))),
    )


def _grid(axes: list[Axis]) -> list[dict[str, str]]:
    for axis in axes:
        if axis.is_range:
            raise InputError(
                f"{axis.key} has a range, of which a grid knows no values: list them, as in {axis.key}="
                f"{axis.low:g},{axis.high:g}, or draw them with --search random --trials N"
            )
    return [dict(zip([a.key for a in axes], row, strict=True)) for row in itertools.product(*(a.values for a in axes))]


def _drawn(axes: list[Axis], trials: int, seed: int) -> list[dict[str, str]]:
    """Settings drawn at random, none twice; the n-th depends on the seed and on those before it only."""
    generator = random.Random(f"sweep {seed}")
    found: list[dict[str, str]] = []
    for _ in range(100 * trials):
        values = {axis.key: axis.draw(generator) for axis in axes}
        if values not in found:
            found.append(values)
        if len(found) == trials:
            return found
    raise InputError(f"--trials {trials} is more than there are different settings ({len(found)} were found): lower it")


def _tables(settings: TrainSettings, seed: int) -> dict[str, Any]:
    tables = settings.model_dump(mode="json")
    del tables["run"]["name"], tables["run"]["folder"]
    tables["run"]["seed"] = seed
    return tables


def _value(flat: dict[str, Any], key: str) -> Any:
    """Of a resolved objective: its parameters stand in a table of their own."""
    name = key.removeprefix("objective.")
    parameter = flat.get(f"objective.parameters.{name}")
    return parameter if flat.get(key) is None and parameter is not None else flat.get(key)


def _as_text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _names(axes: list[Axis], chosen: list[dict[str, str]]) -> list[str]:
    """The folder's name of each setting, without the seed."""
    shorts = short_keys([axis.key for axis in axes])
    names: list[str] = []
    for number, values in enumerate(chosen):
        name = "_".join(f"{_in_names(shorts[key])}-{_in_names(value)}" for key, value in values.items()) or "base"
        if len(name) > _LONGEST_NAME or name.lower() in (other.lower() for other in names):
            name = f"{name[: _LONGEST_NAME - 8]}-{number}"
        names.append(name)
    return names


def _in_names(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "x"


# --- plan.json -------------------------------------------------------------------------------------------------------


def as_json(plan: Plan) -> str:
    """What FOLDER/plan.json holds."""
    content = files.nonfinite_as_text({"format": FORMAT, **dataclasses.asdict(plan)})  # axes without bounds
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_plan(folder: Path) -> Plan:
    """The plan in FOLDER/plan.json. Raises InputError where there is none, or it is damaged."""
    path = folder / PLAN_FILE
    try:
        content = files.read_json(path)
        if content.pop("format") != FORMAT:
            raise InputError(f"{one_line(str(path))} was written by another version of Dinghai: repeat its command")
        axes = [
            Axis(**{**a, "values": tuple(a["values"]), "low": float(a["low"]), "high": float(a["high"])})
            for a in content.pop("axes")
        ]
        trials = [Planned(**planned) for planned in content.pop("trials")]
        return Plan(axes=axes, trials=trials, **content)
    except FileNotFoundError:
        raise InputError(f"{one_line(str(folder))} is no sweep: it holds no {PLAN_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{one_line(str(path))} is damaged ({one_line(str(error), 100)}): repeat its command"
        ) from None
