"""What a sweep varies: `KEY=A,B,C`, or `KEY=LOW:HIGH` and `KEY=LOW:HIGH:log`, a range to draw from."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from dinghai.config.messages import did_you_mean, one_line
from dinghai.config.overrides import normalised
from dinghai.config.tree import all_settings
from dinghai.errors import InputError

_ELSEWHERE = {
    "run.seed": "--seeds N",
    "run.name": "--name",
    "run.folder": "--folder",
    "rewards": "--reward, for all trials alike",
}
_EXAMPLE = "--vary update.lr=1e-4,4e-4"


@dataclass(frozen=True)
class Axis:
    """A setting that is varied: over values, or over a range from `low` to `high`.

    values: as the user wrote them; empty for a range
    log:    whether the range is drawn from evenly in the logarithm
    whole:  whether only whole numbers are drawn
    """

    key: str
    values: tuple[str, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    whole: bool = False

    @property
    def is_range(self) -> bool:
        return not self.values

    def draw(self, generator: random.Random) -> str:
        """A value, as text."""
        if self.values:
            return generator.choice(self.values)
        if self.log:
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = generator.uniform(self.low, self.high)
        # Four digits, so that what is shown is what was set.
        return str(round(drawn)) if self.whole else f"{min(max(float(f'{drawn:.4g}'), self.low), self.high):g}"


def parse_axes(texts: list[str]) -> list[Axis]:
    """The axes of `--vary` arguments. InputError for what is none, and for settings that have options of their own."""
    axes = [_parse_axis(text) for text in texts]
    for axis in axes:
        if sum(axis.key == other.key for other in axes) > 1:
            raise InputError(f"--vary {axis.key} is given twice: name all its values in one, with commas")
    return axes


def _parse_axis(text: str) -> Axis:
    name, equals, values = text.partition("=")
    key = normalised(name.strip().removeprefix("--"))
    if not equals or not key or not values.strip():
        raise InputError(f"--vary {one_line(text)} has no values: write KEY=VALUE,VALUE, as in {_EXAMPLE}")
    if key in _ELSEWHERE:
        raise InputError(f"{key} is not varied by --vary; use {_ELSEWHERE[key]}")
    _check_key(key)
    found = _parse_range(key, values)
    if found is not None:
        return found
    listed = [part.strip() for part in _split(values)]
    if "" in listed:
        raise InputError(f"--vary {one_line(text)} has an empty value between its commas")
    twice = [value for value in listed if listed.count(value) > 1]
    if twice:
        raise InputError(f"--vary {one_line(text)} names {one_line(twice[0], 40)} twice")
    return Axis(key, tuple(listed))


def _check_key(key: str) -> None:
    """InputError for a key that is no setting, in the words of this option."""
    settings = all_settings()
    if any(key == s.key or (s.type == "a table" and key.startswith(f"{s.key}.")) for s in settings):
        return
    near = did_you_mean(key, [s.key for s in settings]) or "; see `dinghai train --help`"
    raise InputError(f"--vary {one_line(key)}: there is no such setting{near}")


def _parse_range(key: str, text: str) -> Axis | None:
    """The range that the text is; None where it is none."""
    low_text, *rest = text.split(":")
    if not rest:
        return None
    try:
        low, high = float(low_text), float(rest[0])
    except ValueError:
        return None  # a value with a colon in it
    log = rest[1:] == ["log"]
    if rest[1:] and not log:
        raise InputError(f"--vary {key}={one_line(text)}: a range is LOW:HIGH, or LOW:HIGH:log")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--vary {key}={one_line(text)}: the first number of a range must be the smaller")
    if log and low <= 0:
        raise InputError(f"--vary {key}={one_line(text)}: a range in the logarithm must begin above 0")
    kinds = [s.type for s in all_settings() if s.key == key]
    return Axis(key, low=low, high=high, log=log, whole=any(kind.startswith("a whole number") for kind in kinds))


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes: `[0.9,0.95],[0.9,0.99]` are two values."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return parts
