"""The few numbers at the top of the report."""

from __future__ import annotations

from typing import Any

from dinghai.lens.summary import RunSummary
from dinghai.text import safe

Tile = tuple[str, str, str]  # name, value, what it is of


def fact_tiles(summary: RunSummary, config: dict[str, Any]) -> list[Tile]:
    """Those that the run's record can tell."""
    found = [_held_out(summary), _reward(summary), _stopped(summary), _removed(summary), _updates(summary, config)]
    return [tile for tile in [*found, _rule(summary)] if tile is not None]


def _held_out(summary: RunSummary) -> Tile | None:
    first, last = summary.held_out_first, summary.held_out_last
    if first is None or last is None:
        return None
    return "Held-out accuracy", f"{first:.1%} → {last:.1%}", f"last evaluated at step {summary.held_out_last_step}"


def _reward(summary: RunSummary) -> Tile | None:
    if summary.reward_first is None or summary.reward_last is None:
        return None
    steps = f"of {summary.steps} steps"
    return "Reward", f"{summary.reward_first:.3g} → {summary.reward_last:.3g}", f"first and last {steps}"


def _stopped(summary: RunSummary) -> Tile | None:
    if summary.stopped_fraction is None:
        return None
    band = f"; {summary.band_fraction:.1%} lay outside the band" if summary.band_fraction is not None else ""
    return "Tokens stopped", f"{summary.stopped_fraction:.1%}", f"of those with a signal{band}"


def _removed(summary: RunSummary) -> Tile | None:
    if summary.gradient_removed is None:
        return None
    most = f"mostly in {summary.removed_most}" if summary.removed_most else "none"
    return "Gradient removed", f"{summary.gradient_removed:.1%}", most


def _updates(summary: RunSummary, config: dict[str, Any]) -> Tile | None:
    if summary.updates_per_batch is None:
        return None
    update = config.get("update")
    made_of = ""
    if isinstance(update, dict) and "epochs" in update and "minibatches" in update:
        made_of = " × ".join(_number_of(update[name], name) for name in ("epochs", "minibatches"))
    return "Updates per batch", str(summary.updates_per_batch), made_of


def _number_of(count: Any, things: str) -> str:
    one = {"epochs": "epoch", "minibatches": "minibatch"}[things]
    return f"{count} {one if count == 1 else things}"


def _rule(summary: RunSummary) -> Tile | None:
    if summary.rule is None:
        return None
    parameters = ", ".join(f"{safe(name)} {value:g}" for name, value in summary.parameters.items())
    return "Rule", safe(str(summary.rule)), parameters
