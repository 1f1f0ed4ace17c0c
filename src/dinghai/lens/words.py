"""Numbers in sentences."""

from __future__ import annotations

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 step, 2 steps, no steps."""
    many = plural or noun + "s"
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {many}" if number else f"no {many}"


def ordinal(number: int) -> str:
    """1 -> first, 11 -> 11th, 22 -> 22nd."""
    if 1 <= number <= len(_ORDINALS):
        return _ORDINALS[number - 1]
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def percent(fraction: float) -> str:
    """A percentage that never reads as 0 % where something happened, nor as 100 % where something is missing."""
    if 0 < fraction < 0.0005:
        return f"{100 * fraction:.1g}%"
    if 0.9995 <= fraction < 1:
        return "more than 99.9%"
    return f"{fraction:.1%}"


def joined(parts: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
