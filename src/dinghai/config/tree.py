"""The tree of settings, read from the classes in `settings.py`: tables, choices by `kind`, and what a value may be."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from dinghai.config.messages import value_text
from dinghai.config.settings import Settings, TrainSettings


class Setting(NamedTuple):
    """One setting, for help and for documentation."""

    key: str  # dotted, e.g. "update.lr"
    type: str  # what is allowed, in words
    default: str  # as in TOML; "required" where there is none
    description: str
    kind: str | None  # the `kind` of its table that it belongs to; None where it does not depend on one


def all_settings() -> list[Setting]:
    """Every setting of a run in the order of the classes, those of each `kind` of a task and an advantage included."""
    return list(_cached_settings())


@functools.cache
def _cached_settings() -> tuple[Setting, ...]:
    return tuple(_settings_below(TrainSettings, "", None))


def table_descriptions() -> dict[str, str]:
    """What each table is for: "update" → text; for a choice, 'advantage, kind = "gae"' → text, one for each kind."""
    found: dict[str, str] = {}
    for name, field in TrainSettings.model_fields.items():
        for kind, table in variants(field.annotation).items():
            found[kind_title(name, kind)] = " ".join((table.__doc__ or "").split())
    return found


def kind_title(table: str, kind: str | None) -> str:
    """The heading of a table, or of one kind of it."""
    return f'{table}, kind = "{kind}"' if kind else table


def _settings_below(model: type[Settings], prefix: str, kind: str | None) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        tables = variants(field.annotation)
        if not tables:
            if not (kind and name == "kind"):
                yield _setting(prefix + name, field, kind)
            continue
        if len(tables) > 1:
            yield Setting(f"{prefix}{name}.kind", _one_of(list(tables)), default_kind(field), "which of these", None)
        for variant, table in tables.items():
            yield from _settings_below(table, f"{prefix}{name}.", variant or kind)


def _setting(key: str, field: FieldInfo, kind: str | None) -> Setting:
    default = "required" if field.is_required() else value_text(_plain(field.default))
    return Setting(key, field_text(field), default.strip('"') or '""', field.description or "", kind)


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def variants(annotation: Any) -> dict[str, type[Settings]]:
    """The classes a table may have: {"": class} for a plain table, {kind: class} for a choice, {} for a value."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return {"": annotation}
    classes = get_args(annotation) if is_union(annotation) else ()
    if classes and all(isinstance(c, type) and issubclass(c, Settings) for c in classes):
        return {c.model_fields["kind"].default: c for c in classes}
    return {}


def item_table(annotation: Any) -> type[Settings] | None:
    """The class of the items where the value is a list of tables, else None."""
    items = get_args(annotation) if get_origin(annotation) is list else ()
    return items[0] if items and isinstance(items[0], type) and issubclass(items[0], Settings) else None


def default_kind(field: FieldInfo) -> str:
    """The kind of a choice where none is named; empty for a plain table."""
    return str(getattr(field.default, "kind", ""))


def is_union(annotation: Any) -> bool:
    """Whether the annotation is `A | B`."""
    return get_origin(annotation) in (Union, types.UnionType)


def without_none(annotation: Any) -> tuple[Any, bool]:
    """(the annotation without `| None`, whether None is allowed)."""
    if not is_union(annotation):
        return annotation, False
    rest = [a for a in get_args(annotation) if a is not type(None)]
    return (rest[0] if len(rest) == 1 else annotation), len(rest) < len(get_args(annotation))


def unwrapped(annotation: Any) -> tuple[Any, list[Any]]:
    """(the annotation without `Annotated`, its constraints)."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    base, *extras = get_args(annotation)
    return base, [m for extra in extras for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]


def field_text(field: FieldInfo) -> str:
    """What a setting may be, in words: `a number > 0`, `one of group, batch, none`."""
    return type_text(field.annotation, field.metadata)


def type_text(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """What a value of this annotation may be, in words."""
    inner, optional = without_none(annotation)
    inner, more = unwrapped(inner)
    text = _type_text(inner, [*constraints, *more])
    return f"{text}, or none" if optional else text


def _type_text(annotation: Any, constraints: Sequence[Any]) -> str:
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    if annotation in names:
        return names[annotation] + _bounds(constraints)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _one_of(arguments)
    if item_table(annotation):
        return "a list of tables" + ("" if not constraints else ", at least one")
    if origin is list:
        return f"a list, each {type_text(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {type_text(arguments[0])}"
    return "a table"


def _bounds(constraints: Sequence[Any]) -> str:
    kinds = {annotated_types.Gt: ("gt", ">"), annotated_types.Ge: ("ge", ">=")}
    kinds |= {annotated_types.Lt: ("lt", "<"), annotated_types.Le: ("le", "<=")}
    parts = [
        f"{sign} {getattr(c, attribute)}" for c in constraints for k, (attribute, sign) in kinds.items() if type(c) is k
    ]
    if parts[:1] == [">= 0"] and parts[1:] == ["<= 1"]:
        return " from 0 to 1"
    return " " + " and ".join(parts) if parts else ""


def _one_of(choices: Sequence[Any]) -> str:
    return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
