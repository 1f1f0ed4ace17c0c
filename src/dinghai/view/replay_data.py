"""What the pages show of a replay: the sums of the run's steps, and of some prompts the tokens that meet another fate.

`dinghai.lens` decides with the objective itself and so needs torch, which is imported when a replay is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dinghai.errors import DinghaiError
from dinghai.text import safe
from dinghai.view.overview import all_safe

PLACES_AT_MOST = 4  # that a report holds for the replay's sake

Json = dict[str, Any]


class Replay:
    """The replay of a run as a report holds it. Why there is none stands in `notes`."""

    def __init__(self, run_folder: Path) -> None:
        self.notes: list[str] = []
        self._run_folder = run_folder
        self._page: Json | None = None
        try:
            self._page = replay_sums(run_folder)
        except DinghaiError as error:
            self.notes.append(safe(f"the run cannot be replayed: {error}"))

    def places(self) -> list[tuple[int, int]]:
        """(step, group) of the tokens on which another rule differs most, the first of each rule before its second."""
        rules = [rule["disagree"] for rule in self._page["rules"]] if self._page else []
        found = [(one["step"], one["group"]) for nth in zip_longest(*rules) for one in nth if one is not None]
        return found[:PLACES_AT_MOST]

    def take(self, groups: Mapping[str, Json]) -> Json:
        """`replay`, None where there is nothing to replay; and `replay_groups` by "STEP/GROUP/UPDATE" for the prompts
        that the page holds."""
        if self._page is None:
            return {"replay": None, "replay_groups": {}}
        found = replay_differences(self._run_folder, self._page, list(groups.values()))
        return {"replay": self._page, "replay_groups": found}


def replay_sums(run_folder: Path) -> Json | None:
    """As `dinghai.lens.replay_page.replay_page`, text in it safe to show; None where there is nothing to replay.

    Raises:
        InputError: the run's settings are damaged, or its rule is not known here.
        RunFailed: a file of the trace is damaged.
    """
    from dinghai.lens.replay_page import replay_page

    page = replay_page(run_folder)
    return None if page is None else all_safe(page)


def replay_differences(run_folder: Path, page: Json, shown: Sequence[Json]) -> dict[str, Json]:
    """The tokens of some prompts that another bound or another rule may decide otherwise than the run did.

    Args:
        page: from `replay_sums`.
        shown: the prompts, as `dinghai.lens.completions.group` gives them.

    Returns:
        By "STEP/GROUP/UPDATE": `grid`, [side, kept_from, [n, …]] for the tokens that some bounds stop and some do not:
        side is -1 for the lower bound and 1 for the upper one, kept_from the place of the first value of it that does
        not stop the tokens; None where the two bounds do not act apart. `rules`, by key [region, effect, [n, …]] of
        the tokens whose effect differs. n counts the tokens of the prompt in that update, in the order of `shown`.

    Raises:
        InputError, RunFailed: as above; or there is no such step.
    """
    from dinghai.lens.replay_page import replay_groups

    asked = [(group, update) for group in shown for update in _updates(group)]
    found = {}
    for (group, update), told in zip(asked, replay_groups(run_folder, asked, page), strict=True):
        recorded, grid = _effects(group, update), told["grid"]
        found[f"{group['step']}/{group['group']}/{update}"] = {
            "grid": None if grid is None else _alike(_moved(grid)),
            "rules": {safe(key): _alike(_otherwise(one, recorded)) for key, one in told["rules"].items()},
        }
    return found


def _updates(group: Json) -> list[int]:
    """That took a completion of the prompt."""
    return sorted({int(name) for sample in group["samples"] for name in sample["updates"]})


def _effects(group: Json, update: int) -> list[int]:
    """Of the prompt's tokens in an update, as recorded."""
    found: list[int] = []
    for sample in group["samples"]:
        if str(update) in sample["updates"]:
            effect = sample["updates"][str(update)]["effect"]
            found += effect if isinstance(effect, list) else [effect] * len(sample["text"])
    return found


Pair = tuple[int, int]


def _moved(grid: Json) -> Iterable[tuple[int, Pair]]:
    """(n, (side, kept_from)) of the tokens that some values stop and some do not."""
    for n, (side, kept_from) in enumerate(zip(grid["side"], grid["kept_from"], strict=True)):
        if kept_from is not None:
            yield n, (side, kept_from)


def _otherwise(rule: Json, recorded: Sequence[int]) -> Iterable[tuple[int, Pair]]:
    """(n, (region, effect)) of the tokens whose effect is not the recorded one."""
    for n, (region, effect, before) in enumerate(zip(rule["region"], rule["effect"], recorded, strict=True)):
        if effect != before:
            yield n, (region, effect)


def _alike(tokens: Iterable[tuple[int, Pair]]) -> list[list[Any]]:
    """Tokens gathered by the pair that they share: [[one, other, [n, …]], …]."""
    found: dict[Pair, list[int]] = {}
    for n, pair in tokens:
        found.setdefault(pair, []).append(n)
    return [[*pair, places] for pair, places in found.items()]
