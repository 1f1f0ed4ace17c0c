"""The settings and versions of a run as rows for the page, with what must stay secret left out."""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dinghai.files import read_json

HIDDEN = "(hidden)"

# A setting's last name, whole words only: `max_new_tokens` and `tokens` are no secrets.
_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|secret|passw(or)?d|credentials?|private_key|access_key|auth|"
    r"(access|auth|hf|api|bearer|refresh)_token|token)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}|://[^/\s:@]+:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_PACKAGES = ["dinghai", "torch", "transformers", "tokenizers", "pyarrow", "numpy"]


def settings_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Each setting's dotted name and its value as JSON; secrets are hidden by name and by what they look like."""
    rows: list[tuple[str, str]] = []
    _flatten("", config, rows)
    return rows


def trained_with(run_folder: Path) -> list[tuple[str, str]]:
    """Versions and device as the run itself noted them in `versions.json`; empty where it did not."""
    try:
        noted = read_json(run_folder / "versions.json")
    except (OSError, ValueError):
        return []  # of a run by an older version, or damaged: the page then names the writing program's versions alone
    return [(str(name), str(value)) for name, value in noted.items()] if isinstance(noted, dict) else []


def version_rows() -> list[tuple[str, str]]:
    """Of the program that writes the report, which need not be the one that trained."""
    rows = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows


def _flatten(name: str, value: Any, rows: list[tuple[str, str]]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _flatten(f"{name}.{key}" if name else str(key), inner, rows)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            _flatten(f"{name}.{index}", inner, rows)
    else:
        written = json.dumps(value, ensure_ascii=False)
        secret = _SECRET_NAME.search(name.rsplit(".", 1)[-1]) or _SECRET_VALUE.search(written)
        rows.append((name, HIDDEN if secret and value is not None else written))
