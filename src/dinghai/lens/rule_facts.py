"""Reads `rule.json`: what the run's rule decides by the ratio alone, as the program that had the rule found out.

Its keys are described where it is made, in `dinghai.objective.probe.probe`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dinghai.errors import DinghaiError, InputError, RunFailed
from dinghai.files import read_json
from dinghai.lens.regions import REGIONS

RULE_FILE = "rule.json"
VERSION = 1

_TEXTS = ("name", "title", "paper", "formula", "zero", "ratio", "reduction")
_OPTIONAL_TEXTS = ("boundaries_vary_with", "note")
_BYTES_AT_MOST = 1_000_000  # ours has some 10,000
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


def load_rule_facts(run_folder: Path) -> dict[str, Any] | None:
    """The content of a run's rule.json; None where the run has none, being older than it.

    Non-finite numbers stay the words that they are in the file. Texts are as written: a rule may be anybody's.

    Raises:
        InputError: a newer version of Dinghai wrote the file.
        RunFailed: the file is damaged or may not be read.
    """
    path = Path(run_folder) / RULE_FILE
    if not path.exists():
        return None
    try:
        facts = read_json(path, largest=_BYTES_AT_MOST)
        if isinstance(facts, dict) and _is_number(facts.get("version")) and facts["version"] > VERSION:
            raise InputError(
                f"{path} has version {facts['version']}, and this Dinghai reads versions up to {VERSION}: "
                "upgrade Dinghai to read it"
            )
        _check(facts)
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise RunFailed(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:80]}). Restore it; without the file a run is "
            "shown without its rule's boundaries"
        ) from error
    return {key: facts[key] for key in ("version", *_TEXTS, "parameters", "boundaries", "weights", *_OPTIONAL_TEXTS)}


def readable_rule_facts(run_folder: Path) -> dict[str, Any] | None:
    """As `load_rule_facts`, for who can do without: None for a damaged file too, which the overview tells of."""
    try:
        return load_rule_facts(run_folder)
    except DinghaiError:
        return None


def _check(facts: Any) -> None:
    """Raises KeyError, TypeError or ValueError for what a page could not draw."""
    for key in _TEXTS:
        _require(isinstance(facts[key], str), key)
    for key in _OPTIONAL_TEXTS:
        _require(facts[key] is None or isinstance(facts[key], str), key)
    _require(isinstance(facts["parameters"], dict), "parameters")
    _require(all(v is None or _is_number(v) for v in facts["parameters"].values()), "parameters")
    for boundary in facts["boundaries"]:
        _require(boundary["advantage"] in (1, -1), "advantage of a boundary")
        places = boundary["log_ratio"], boundary["ratio"]
        _require(all(_is_number(x) and not isinstance(x, str) for x in places), "place of a boundary")
        _require(boundary["below"] in REGIONS and boundary["above"] in REGIONS, "region of a boundary")
    weights = facts["weights"]
    if weights is not None:
        curves = [weights[name] for name in ("log_ratio", "good", "bad")]
        _require(all(isinstance(c, list) and all(_is_number(x) for x in c) for c in curves), "weights")
        _require(len({len(curve) for curve in curves}) == 1, "weights")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"no valid {what}")


def _is_number(value: Any) -> bool:
    """Also for the words that stand for non-finite ones."""
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in _NON_FINITE
