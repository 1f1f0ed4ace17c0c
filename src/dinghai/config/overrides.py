"""Settings from the command line: `--table.key value`, `--table.key=value`, and `--table.key` alone for true."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, get_args, get_origin

from dinghai.config.messages import one_line
from dinghai.config.tree import all_settings, unwrapped, without_none
from dinghai.errors import InputError

# What may follow a flag as its value; all but the first two are then refused with a word on what is allowed.
_TRUTH = {"true", "false", "yes", "no", "on", "off", "1", "0", "none"}


class Override(NamedTuple):
    """One `--table.key value`; `text` is None for a flag that stands alone."""

    key: str
    text: str | None

    def token(self) -> str:
        """As one argument, which `read_overrides` reads back."""
        return f"--{self.key}" if self.text is None else f"--{self.key}={self.text}"


def read_overrides(tokens: list[str]) -> list[Override]:
    """The overrides in a list of arguments. InputError where something else stands among them."""
    overrides, rest = split_overrides(tokens)
    if rest:
        raise InputError(f"expected --table.key value, got {one_line(rest[0])}")
    return overrides


def split_overrides(tokens: list[str], other: Collection[str] = ()) -> tuple[list[Override], list[str]]:
    """Takes the overrides out of a list of arguments: (overrides, the other arguments, in order).

    Every `--name` that is not among `other` is taken for a setting, whether it exists or not, so that a misspelt one
    is answered with the nearest valid keys. A flag (a setting that is true or false) takes the next argument only if
    that is a truth value.
    """
    flags = {s.key for s in all_settings() if s.type == "true or false"}
    overrides: list[Override] = []
    rest: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if not token.startswith("--") or token.partition("=")[0] in other:
            rest.append(token)
            continue
        _check_unicode(token)
        name, has_value, text = token[2:].partition("=")
        key = normalised(name)
        following = tokens[position] if position < len(tokens) else "--"
        takes_next = following.lower() in _TRUTH if key in flags else not following.startswith("--")
        if has_value:
            overrides.append(Override(key, text))
        elif takes_next:
            _check_unicode(following)
            overrides.append(Override(key, following))
            position += 1
        else:
            overrides.append(Override(key, None))
    return overrides, rest


def normalised(key: str) -> str:
    """Dashes and underscores are the same in names of settings; keys of free tables (`task.parameters.*`) are kept."""
    for free in (s.key + "." for s in all_settings() if s.type == "a table"):
        if key.replace("-", "_").startswith(free):
            return free + key[len(free) :]
    return key.replace("-", "_")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{one_line(text)} is not UTF-8 text; write it in UTF-8") from error


def parse_value(text: str | None, annotation: Any) -> Any:
    """The value that `text` stands for, given the type of the setting. What does not fit is left as text,

    so that validation names it together with what is allowed.
    """
    inner, optional = without_none(annotation)
    inner, _ = unwrapped(inner)
    if text is None:
        return True if inner is bool else None
    if optional and text.lower() == "none":
        return None
    if inner is Any:
        return _guess(text)
    if get_origin(inner) in (list, tuple):
        return _parse_list(text, get_args(inner)[0])
    if get_origin(inner) is dict:
        return _toml_value(text, text)
    return text if inner is str or get_origin(inner) is Literal else _parse_scalar(text, inner)


def _parse_scalar(text: str, kind: Any) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    with contextlib.suppress(ValueError):  # validation refuses what stays text, and says what is allowed
        return _whole(text) if kind is int else float(text)
    return text


def _whole(text: str) -> int | float:
    with contextlib.suppress(ValueError):  # 1e5 is a whole number too, but not to int()
        return int(text)
    number = float(text)
    return int(number) if number.is_integer() else number


def _parse_list(text: str, item: Any) -> Any:
    if text.lstrip().startswith("["):
        return _toml_value(text, text)
    return [parse_value(part.strip(), item) for part in text.split(",")] if text.strip() else []


def _guess(text: str) -> Any:
    value = _toml_value(text, text)
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _toml_value(text: str, otherwise: Any) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return otherwise
    return parsed["value"] if list(parsed) == ["value"] else otherwise
