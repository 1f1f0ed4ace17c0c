"""The small sample of completions that the report shows token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinghai.errors import DinghaiError
from dinghai.lens.regions import EFFECTS, REGIONS, region_name
from dinghai.trace import Names, TraceReader
from dinghai.view.report_charts import _number
from dinghai.view.terminal import safe
from dinghai.view.token_text import TokenText, visible

PROMPT_CHARACTERS = 2_000
GROUPS_A_STEP = 4
COLUMNS = ["logp_sampler", "logp_old", "logp_new", "advantage", "weight", "entropy"]


@dataclass(frozen=True)
class Limits:
    """How much of the trace is shown."""

    samples: int  # completions of a prompt
    tokens: int  # of a completion


# Tried in order until the page is small enough.
LIMITS = [Limits(8, 600), Limits(6, 200), Limits(4, 100), Limits(3, 40)]


def token_sample(
    trace_folder: Path, token_text: TokenText | None, limits: Limits
) -> tuple[list[dict[str, Any]], list[str]]:
    """The first, the middle and the last recorded step, for the page; and what there is to say about the trace."""
    reader = TraceReader(trace_folder)
    if not trace_folder.is_dir():
        return [], ["there is no trace, so no completion can be shown token by token (trace.enabled was false?)"]
    try:
        steps, broken = reader.steps(), reader.incomplete()
    except DinghaiError as error:
        return [], [str(error)]
    notes = [f"trace of step {step} is not shown: {why}" for step, why in list(broken.items())[:5]]
    if not steps:
        return [], [*notes, "the trace has no complete step, so no completion can be shown token by token"]
    shown = []
    for step in sorted({steps[0], steps[len(steps) // 2], steps[-1]}):
        try:
            shown.append(_step(reader, step, visible(token_text) if token_text else None, limits))
        except DinghaiError as error:
            notes.append(str(error))
    return shown, notes


def _step(reader: TraceReader, step: int, text: TokenText | None, limits: Limits) -> dict[str, Any]:
    names = reader.names(step)
    samples = reader.samples(step)
    fates = reader.tokens(step, columns=["sample", "effect"])
    stopped = _stopped_by_sample(fates, names)
    groups = _most_stopped_groups(samples, stopped)[:GROUPS_A_STEP]
    chosen = _samples_of(samples, groups, limits.samples)
    tokens = _by_sample(reader.tokens(step), [sample["sample"] for group in chosen for sample in group])
    numbering = _Numbering(names)
    marker = reader.marker(step)
    return {
        "step": step,
        "updates": reader.updates(step),
        "recorded": [marker.tokens_recorded, marker.tokens_total],
        "groups": [
            {
                "prompt": _cut(group[0]["prompt"], PROMPT_CHARACTERS),
                "prompt_id": safe(group[0]["prompt_id"]),
                "size": samples["group"].to_pylist().count(group[0]["group"]),
                "samples": [_sample(one, tokens[one["sample"]], text, limits.tokens, numbering) for one in group],
            }
            for group in chosen
        ],
    }


class _Numbering:
    """From the numbers of a trace to positions in the page's lists of regions and effects."""

    def __init__(self, names: Names) -> None:
        self.region = _lookup(names.regions, REGIONS)
        self.effect = _lookup(names.effects, EFFECTS)


def _lookup(stored: Any, known: Sequence[str]) -> np.ndarray:
    """table[number] -> index in `known`, -1 where the page knows no such name."""
    table = np.full(256, -1, dtype=np.int64)
    for number, name in stored.items():
        if region_name(name) in known and 0 <= number < 256:
            table[number] = known.index(region_name(name))
    return table


def _stopped_by_sample(tokens: pa.Table, names: Names) -> dict[int, int]:
    numbers = [number for number, name in names.effects.items() if region_name(name) == "stopped"]
    stopped = np.isin(tokens["effect"].to_numpy(), numbers)
    ids, counts = np.unique(tokens["sample"].to_numpy()[stopped], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _most_stopped_groups(samples: pa.Table, stopped: dict[int, int]) -> list[int]:
    """Group numbers, those with the most stopped tokens first."""
    totals: dict[int, int] = {}
    for sample, group in zip(samples["sample"].to_pylist(), samples["group"].to_pylist(), strict=True):
        totals[group] = totals.get(group, 0) + stopped.get(sample, 0)
    return sorted(totals, key=lambda group: (-totals[group], group))


def _samples_of(samples: pa.Table, groups: list[int], at_most: int) -> list[list[dict[str, Any]]]:
    """The rows of each group, best and worst rewards first when there are too many."""
    out = []
    for group in groups:
        rows = samples.filter(pc.equal(samples["group"], group)).to_pylist()
        rows.sort(key=lambda row: (-row["reward"] if not math.isnan(row["reward"]) else math.inf, row["sample"]))
        if len(rows) > at_most:
            head = math.ceil(at_most / 2)
            rows = rows[:head] + rows[len(rows) - (at_most - head) :]
        out.append(rows)
    return out


def _by_sample(tokens: pa.Table, wanted: list[int]) -> dict[int, dict[str, np.ndarray]]:
    """Each wanted sample's rows as columns, ordered by update and position."""
    sample = tokens["sample"].to_numpy()
    rows = np.flatnonzero(np.isin(sample, wanted))
    columns = {name: tokens[name].to_numpy()[rows] for name in tokens.column_names}
    order = np.lexsort((columns["position"], columns["update"]))
    columns = {name: values[order] for name, values in columns.items()}
    return {one: {name: values[columns["sample"] == one] for name, values in columns.items()} for one in wanted}


def _sample(
    row: dict[str, Any], tokens: dict[str, np.ndarray], text: TokenText | None, at_most: int, numbering: _Numbering
) -> dict[str, Any]:
    """One completion: its tokens once, and for each update that took it the fate of each."""
    positions, first = np.unique(tokens["position"], return_index=True)
    positions, first = positions[:at_most], first[:at_most]
    ids = tokens["token"][first].tolist()
    updates = {}
    for update in np.unique(tokens["update"]).tolist():
        rows = (tokens["update"] == update) & np.isin(tokens["position"], positions)
        place = np.searchsorted(positions, tokens["position"][rows])
        updates[str(update)] = _fates({name: values[rows] for name, values in tokens.items()}, place, numbering)
    return {
        "id": row["sample"],
        "reward": _number(row["reward"]),
        "parts": {
            safe(name.removeprefix("reward/")): _number(value)
            for name, value in row.items()
            if name.startswith("reward/") and value is not None
        },
        "finished": row["finished"],
        "length": row["tokens"],
        "text": [text(token) if text else f"⟨{token}⟩" for token in ids],
        "written": None if text else _cut(row["completion"], 4 * at_most),
        "updates": updates,
    }


def _fates(tokens: dict[str, np.ndarray], place: np.ndarray, numbering: _Numbering) -> dict[str, Any]:
    """Columns of one update; `place` is where each row stands among the completion's shown tokens."""
    fates: dict[str, Any] = {name: [_number(float(value)) for value in tokens[name]] for name in COLUMNS}
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(tokens["logp_new"].astype(np.float64) - tokens["logp_old"].astype(np.float64))
    fates["ratio"] = [_number(float(value)) for value in ratio]
    fates["region"] = numbering.region[tokens["region"]].tolist()
    fates["effect"] = numbering.effect[tokens["effect"]].tolist()
    fates = {name: _once_if_constant(values) for name, values in fates.items()}
    return fates | {"place": None if np.array_equal(place, np.arange(len(place))) else place.tolist()}


def _once_if_constant(values: list[Any]) -> Any:
    """A list whose values are all the same as that one value: an advantage is mostly one number a completion."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _cut(text: str, characters: int) -> str:
    shown = safe(text[:characters], newline="\n")
    return shown + " …" if len(text) > characters else shown
