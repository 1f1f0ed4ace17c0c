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


def duration(seconds: float) -> str:
    """0.31 s, 12.3 s, 4 min 5 s, 1 h 2 min."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min"


def size(number: float) -> str:
    """Bytes, in decimal units: 512 bytes, 4.6 kB, 1.3 GB."""
    if number < 1000:
        return counted(round(number), "byte")
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.5:
            return f"{number:.3g} {unit}"
    return f"{rounded(number / 1000)} TB"


def rounded(number: float) -> str:
    """Three significant digits with separators: 53,200."""
    digits = 3 - len(str(int(abs(number))))
    return f"{round(number, min(digits, 0)):,.0f}" if number >= 100 else f"{number:.3g}"
