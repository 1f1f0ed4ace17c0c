"""The settings of a run, as its config.json has them."""

from __future__ import annotations

from typing import Any


def table(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of a run's settings; empty where it is missing or no table."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}
