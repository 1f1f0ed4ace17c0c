"""Reads a JSON-lines file of questions and answers. Whatever is wrong is said with its line number."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinghai.errors import InputError
from dinghai.tasks.answers import final_answer

LONGEST_LINE_BYTES = 10_000_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One line: its number (from 1), question, answer as it stands, and the object's other keys."""

    number: int
    question: str
    answer: str
    extra: dict[str, Any]


def read_lines(path: Path, question_key: str, answer_key: str) -> list[Line]:
    """All lines of the file but blank ones. Raises InputError for the first that is wrong."""
    lines = [
        _parse(f"{path}, line {number}", number, text, question_key, answer_key) for number, text in _numbered(path)
    ]
    if not lines:
        raise InputError(f"{path} is empty: task.path must name a file with one JSON object a line")
    return lines


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                text = _decode(f"{path}, line {number}", raw).strip()
                if text:
                    yield number, text
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: task.path must name a JSON-lines file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _decode(where: str, raw: bytes) -> str:
    if len(raw) > LONGEST_LINE_BYTES:
        raise InputError(f"{where} is longer than {LONGEST_LINE_BYTES // 10**6} MB: is it one JSON object a line?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 (byte {error.start + 1} of the line): convert the file") from None


def _parse(where: str, number: int, text: str, question_key: str, answer_key: str) -> Line:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):  # ValueError: an integer of more digits than Python reads
        raise InputError(f"{where} is not JSON that can be read: too deeply nested, or too long a number") from None
    if not isinstance(record, dict):
        raise InputError(f"{where} is {_kind(record)}, not an object like {{{json.dumps(question_key)}: …}}")
    question = _text(where, "task.question_key", question_key, record)
    answer = _text(where, "task.answer_key", answer_key, record)
    if not final_answer(answer):
        raise InputError(f"{where}: the answer ({answer_key!r}) is empty; nothing could be scored against it")
    extra = {key: value for key, value in record.items() if key not in (question_key, answer_key)}
    return Line(number, question, answer, extra)


def _text(where: str, setting: str, key: str, record: dict[str, Any]) -> str:
    if key not in record:
        raise InputError(f"{where} has no key {key!r}; {_suggestion(key, list(record), setting)}")
    value = record[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and setting == "task.answer_key":
        return str(value)
    if not isinstance(value, str):
        expected = "text or a number" if setting == "task.answer_key" else "text"
        raise InputError(f"{where}: {key!r} is {_kind(value)}, not {expected}; see {setting}")
    return value


def _suggestion(key: str, present: list[str], setting: str) -> str:
    if nearest := difflib.get_close_matches(key, present, 1, 0.5):
        return f'is it {nearest[0]!r}? Then set {setting} = "{nearest[0]}"'
    return f"it has {', '.join(map(repr, present[:8])) or 'none'}; set {setting}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
