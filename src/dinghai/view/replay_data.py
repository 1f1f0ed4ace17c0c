"""What the pages show of a replay: the sums of the run's steps, and of some prompts the tokens that meet another fate.

Shapes: N tokens of the prompts that are shown, in all updates; V values of a bound.

`dinghai.lens` decides with the objective itself and so needs torch, which is imported when a replay is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from dinghai.errors import DinghaiError
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.text import safe
from dinghai.trace import TraceReader
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
    from dinghai.lens.replay import Minibatch, joined, recorded_objective
    from dinghai.lens.replay_candidates import other_rules

    parts = _parts(TraceReader(run_folder / "trace"), shown)
    if not parts:
        return {}
    own, tokens = recorded_objective(run_folder), joined([part.tokens for part in parts])
    minibatch = Minibatch(tokens)
    starts = np.cumsum([0, *(len(part.tokens) for part in parts)])
    rows_N = np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=False)])
    recorded_N = tokens.effect[rows_N]
    found: list[Json] = [{"grid": None, "rules": {}} for _ in parts]
    ends = np.cumsum([len(part.rows) for part in parts])

    def alike(which_N: np.ndarray, one_N: np.ndarray, other_N: np.ndarray) -> Iterator[tuple[Json, list[Any]]]:
        """Of each part those tokens, counted from its own first one, gathered by the pair of values that they share."""
        for part, start, end in zip(found, [0, *ends], ends, strict=False):
            by_pair: dict[tuple[int, int], list[int]] = {}
            for n in np.flatnonzero(which_N[start:end]).tolist():
                by_pair.setdefault((int(one_N[start + n]), int(other_N[start + n])), []).append(n)
            yield part, [[*pair, places] for pair, places in by_pair.items()]

    for one in other_rules(own):
        if not one.looks_at_minibatch:  # of which a prompt is a part only
            replayed = minibatch.replay(one.policy_loss)
            region_N, effect_N = replayed.region_N[rows_N], replayed.effect_N[rows_N]
            for part, rows in alike(effect_N != recorded_N, region_N, effect_N):
                part["rules"][safe(one.key)] = rows
    if page["grid"] and page["grid"]["separable"]:
        side_N, kept_from_N = _sides(own, page["grid"], minibatch, rows_N)
        for part, rows in alike(kept_from_N > 0, side_N, kept_from_N):
            part["grid"] = rows
    return {part.key: one for part, one in zip(parts, found, strict=True)}


@dataclass(frozen=True)
class _Part:
    """The completions of one prompt in one update."""

    key: str
    tokens: Tokens  # whole completions: a rule may judge by all of one
    rows: np.ndarray  # of the tokens that are shown, in their order


def _parts(reader: TraceReader, shown: Sequence[Json]) -> list[_Part]:
    read: dict[tuple[int, int], Tokens] = {}
    parts = []
    for group in shown:
        step = group["step"]
        for update in sorted({int(name) for sample in group["samples"] for name in sample["updates"]}):
            taken = [(one["id"], len(one["token"])) for one in group["samples"] if str(update) in one["updates"]]
            if (step, update) not in read:
                read[step, update] = read_tokens(reader, step, update)
            whole = read[step, update]
            mine = whole.rows(np.isin(whole.sample, [sample for sample, _ in taken]))
            rows = np.concatenate([_first_rows(mine, *one) for one in taken])
            parts.append(_Part(f"{step}/{group['group']}/{update}", mine, rows))
    return parts


def _first_rows(tokens: Tokens, sample: int, count: int) -> np.ndarray:
    rows = np.flatnonzero(tokens.sample == sample)
    return rows[np.argsort(tokens.position[rows], kind="stable")][:count]


def _sides(own: Any, grid: Json, minibatch: Any, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bound that concerns each token, -1 or 1, and from which place of its values on it does not stop the token.

    0 where every value of it does, or none.
    """
    from dinghai.lens.replay_grid import is_below, with_bounds

    low, high = grid["low"], grid["high"]
    stopped, below_N = [], np.zeros(len(rows_N), dtype=bool)
    for place in range(max(len(low), len(high))):
        bounds = low[min(place, len(low) - 1)], high[min(place, len(high) - 1)]
        replayed = minibatch.replay(with_bounds(own, *bounds))
        stopped.append(replayed.stopped_N[rows_N])
        below_N = is_below(replayed)[rows_N]
    stopped_VN = np.stack(stopped)
    last_low_N, last_high_N = (_first_free(stopped_VN[: len(values)]) for values in (low, high))
    return np.where(below_N, -1, 1), np.where(below_N, last_low_N, last_high_N)


def _first_free(stopped_VN: np.ndarray) -> np.ndarray:
    """The place after the last value that stops the token; 0 where none does or all do. [N] int"""
    values = len(stopped_VN)
    after_N = values - np.argmax(stopped_VN[::-1], axis=0)
    return np.where(stopped_VN.any(axis=0) & ~stopped_VN[-1], after_N, 0)
