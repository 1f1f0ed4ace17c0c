"""Parameters of rules: typed, with unit, range and description, so that one declaration serves checks and documents."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dinghai.errors import InputError


@dataclass(frozen=True)
class ParameterInfo:
    """What a person who sets a parameter has to know."""

    name: str
    default: float | None
    unit: str  # e.g. "offset from 1", "absolute ratio"
    usual: tuple[float, float]  # where published runs with token ratios lie; values beyond are allowed
    usual_sequence: tuple[float, float] | None  # the same for sequence ratios, None where it makes no difference
    above: float  # values must be greater
    description: str


def parameter(
    default: float | None,
    *,
    unit: str,
    usual: tuple[float, float],
    description: str,
    usual_sequence: tuple[float, float] | None = None,
    above: float = 0.0,
) -> Any:
    """Declares a field of `Parameters`. A default of None makes the parameter optional: None switches it off."""
    info = ParameterInfo("", default, unit, usual, usual_sequence, above, description)
    return field(default=default, metadata={"info": info})


@dataclass(frozen=True)
class Parameters:
    """Base of a rule's parameters: each value is checked on construction. Infinity is a value, NaN is not.

    Raises:
        InputError: a value is no number or out of range.
    """

    def __post_init__(self) -> None:
        for info in describe(type(self)):
            _check(info, getattr(self, info.name))


def describe(kind: type[Parameters]) -> list[ParameterInfo]:
    """The parameters that a class declares, in order."""
    return [replace(f.metadata["info"], name=f.name) for f in fields(kind)]


def _check(info: ParameterInfo, value: object) -> None:
    if value is None and info.default is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or value <= info.above:  # type: ignore[arg-type, operator]
        raise InputError(
            f"{info.name} must be a number above {info.above:g} ({info.unit}, "
            f"usually {info.usual[0]:g} to {info.usual[1]:g}); got {value!r}"
        )
