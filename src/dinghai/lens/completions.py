"""Completions token by token: which prompts of a step lost most gradient, and what became of each of their tokens.

Shapes: N tokens, G groups (prompts) of a step.

A step may hold a million tokens, so its prompts are compared by sums alone, and only the completions of the one that is
looked at are unpacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinghai.errors import InputError
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.text import safe
from dinghai.trace import TraceReader
from dinghai.trace.schema import OF_SCORED

PROMPT_CHARACTERS = 2_000
HEAD_CHARACTERS = 90
COMMON_START = 24  # characters that all prompts begin with, from which on they are left out of the heads
NUMBERS = ("logp_sampler", "logp_old", "logp_new", "advantage", "weight", "weight_unclipped", "removed", "entropy")
NUMBERS_OF_SOME_RUNS = ("correction", "kl_weight")
DIGITS = 5
DIGITS_OF_RATIO = 8  # so that 1.0003, the bound of a sequence's ratio, keeps its digits


@dataclass(frozen=True)
class Limits:
    """How much of a prompt's completions is given."""

    samples: int = 16  # completions, those that lost most first
    tokens: int = 4_000  # of a completion, from its beginning


@dataclass(frozen=True)
class Spelling:
    """How the tokens of a completion are shown, safe to show."""

    text: list[str]  # of each token; empty where it only continues the character that an earlier one began
    bytes: dict[int, str]  # place -> hex, of the tokens that are no whole characters by themselves


Spell = Callable[[Sequence[int]], Spelling]


def group_heads(reader: TraceReader, step: int) -> list[dict[str, Any]]:
    """The recorded prompts of a step, the one that lost most gradient first: `group`, `prompt_id`, `prompt` (the
    beginning, in one line), `size` (completions), `reward_mean`, and over all updates the tokens with a `signal`, those
    `stopped`, those `outside` the band, `removed` (the prompt's share of all the gradient removed in the step) and
    `worst` (the largest |log ratio| of a token with a signal, nats; None where none has one).

    Raises:
        InputError: there is no such step.
        RunFailed: a file is damaged.
    """
    samples = reader.samples(step, ["sample", "group", "prompt_id", "prompt", "reward"])
    groups, of_sample = np.unique(samples["group"].to_numpy(), return_inverse=True)
    sums = _SumsBy(samples["sample"].to_numpy(), of_sample, len(groups))
    for update in reader.updates(step):
        sums.add(read_tokens(reader, step, update, _SumsBy.COLUMNS))
    first = [int(np.argmax(of_sample == place)) for place in range(len(groups))]
    starts = _starts([samples["prompt"][row].as_py() for row in first])
    reward = samples["reward"].to_numpy().astype(np.float64)
    removed_all = float(sums.removed.sum())
    heads = [
        {
            "group": int(group),
            "prompt_id": safe(samples["prompt_id"][first[place]].as_py()),
            "prompt": starts[place],
            "size": int((of_sample == place).sum()),
            "reward_mean": _number(reward[of_sample == place].mean()),
            "signal": int(sums.signal[place]),
            "stopped": int(sums.stopped[place]),
            "outside": int(sums.outside[place]),
            "removed": _number(sums.removed[place] / removed_all) if removed_all else 0,
            "worst": _number(sums.worst[place]) if sums.signal[place] else None,
        }
        for place, group in enumerate(groups)
    ]
    return [heads[place] for place in sums.worst_first(groups)]


def group(
    reader: TraceReader, step: int, group: int, spell: Spell | None = None, limits: Limits | None = None
) -> dict[str, Any]:
    """One prompt of a step with its completions, the one that lost most gradient first.

    Each of `samples` has the `text` of its tokens once, and under `updates` for each update that took it the columns of
    `Tokens` as the page reads them: `region` and `effect` as indices in REGIONS and EFFECTS, `ratio` of the ratio that
    the rule saw, and numbers rounded to five digits. A column whose values are all the same is that one value;
    what is not finite is its name. Where a token was never scored there is `scored`, false for such tokens, and what a
    pass through the model would have told of them is None.

    Args:
        spell: from token ids to what is shown; without it ids are shown, and the completion as it was `written`.

    Raises:
        InputError: there is no such step, or no such prompt in it.
        RunFailed: a file is damaged.
    """
    limits = limits or Limits()
    samples = reader.samples(step)
    rows = samples.filter(pc.equal(samples["group"], pa.scalar(group, pa.int32()))).to_pylist()
    if not rows:
        raise InputError(f"step {step} has no recorded prompt {group}")
    ids = np.sort(np.array([row["sample"] for row in rows]))
    sums = _SumsBy(ids, np.arange(len(ids)), len(ids))
    by_update: dict[int, Tokens] = {}
    for update in reader.updates(step):
        tokens = _of_samples(reader, step, update, ids)
        sums.add(tokens)
        by_update[update] = tokens
    by_id = {row["sample"]: row for row in rows}
    shown = [by_id[int(ids[place])] for place in sums.worst_first(ids)[: limits.samples]]
    return {
        "step": step,
        "group": group,
        "prompt": _cut(rows[0]["prompt"], PROMPT_CHARACTERS),
        "prompt_id": safe(rows[0]["prompt_id"]),
        "size": len(rows),
        "samples": [_sample(row, by_update, spell, limits.tokens) for row in shown],
    }


class _SumsBy:
    """What the tokens of each group, or of each sample, add up to."""

    COLUMNS = ("sample", "log_ratio", "signal", "stopped", "outside", "removed")

    def __init__(self, sample_ids: np.ndarray, part_of_sample: np.ndarray, parts: int) -> None:
        order = np.argsort(sample_ids)
        self._ids, self._part = sample_ids[order], part_of_sample[order]
        self.signal, self.stopped, self.outside = (np.zeros(parts, dtype=np.int64) for _ in range(3))
        self.removed, self.worst = np.zeros(parts), np.zeros(parts)

    def add(self, tokens: Tokens) -> None:
        """The tokens of one update."""
        part_N = self._part[np.searchsorted(self._ids, tokens.sample)]
        parts = len(self.worst)
        for sums, which_N in (
            (self.signal, tokens.signal),
            (self.stopped, tokens.stopped),
            (self.outside, tokens.outside),
        ):
            sums += np.bincount(part_N[which_N], minlength=parts)
        self.removed += np.bincount(part_N, weights=tokens.removed, minlength=parts)
        moved_N = tokens.signal  # as metrics.jsonl has it: whether other tokens were scored changes nothing
        np.maximum.at(self.worst, part_N[moved_N], np.abs(tokens.log_ratio[moved_N]))  # lets NaN through

    def worst_first(self, names: np.ndarray) -> list[int]:
        """Places by removed gradient, then stopped tokens, then |log ratio|, then name; what is not finite first."""
        removed, worst = (np.where(np.isnan(x), np.inf, x) for x in (self.removed, self.worst))
        order: list[int] = np.lexsort((names, -worst, -self.stopped, -removed)).tolist()
        return order


def _of_samples(reader: TraceReader, step: int, update: int, ids: np.ndarray) -> Tokens:
    """The tokens of some samples in one update, ordered by sample and position."""
    tokens = read_tokens(reader, step, update)
    mine = np.flatnonzero(np.isin(tokens.sample, ids))
    tokens = tokens.rows(mine)
    return tokens.rows(np.lexsort((tokens.position, tokens.sample)))


def _sample(
    row: Mapping[str, Any], by_update: Mapping[int, Tokens], spell: Spell | None, at_most: int
) -> dict[str, Any]:
    """One completion: its tokens once, and for each update that took it the fate of each."""
    taken = {update: _rows_of(tokens, row["sample"]) for update, tokens in by_update.items()}
    taken = {update: tokens.rows(slice(at_most)) for update, tokens in taken.items() if len(tokens)}
    ids = next(iter(taken.values())).token.tolist() if taken else []
    spelling = spell(ids) if spell else Spelling([f"⟨{token}⟩" for token in ids], {})
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
        "text": spelling.text,
        "token": ids,
        "bytes": {str(place): text for place, text in spelling.bytes.items()},
        "written": None if spell else _cut(row["completion"], 4 * at_most),
        "updates": {str(update): _fates(tokens) for update, tokens in taken.items()},
    }


def _rows_of(tokens: Tokens, sample: int) -> Tokens:
    """The rows of one sample, of tokens ordered by sample."""
    return tokens.rows(slice(*np.searchsorted(tokens.sample, [sample, sample + 1])))


def _fates(tokens: Tokens) -> dict[str, Any]:
    """Columns of one completion in one update."""
    names = [*NUMBERS, *(name for name in NUMBERS_OF_SOME_RUNS if getattr(tokens, name) is not None)]
    fates: dict[str, list[Any]] = {name: [*_numbers(getattr(tokens, name), DIGITS)] for name in names}
    with np.errstate(over="ignore"):
        fates["ratio"] = [*_numbers(np.exp(tokens.log_ratio.astype(np.float64)), DIGITS_OF_RATIO)]
    if not tokens.scored.all():
        for name in ("ratio", *OF_SCORED):
            if name in fates:
                fates[name] = [
                    value if scored else None for value, scored in zip(fates[name], tokens.scored, strict=True)
                ]
        fates["scored"] = tokens.scored.tolist()
    fates |= {"region": tokens.region.tolist(), "effect": tokens.effect.tolist()}
    return {name: _once_if_constant(values) for name, values in fates.items()}


def _once_if_constant(values: list[Any]) -> Any:
    """A list whose values are all the same as that one value: an advantage is mostly one number a completion."""
    return values[0] if values and all(value == values[0] for value in values) else values


def _numbers(values_N: np.ndarray, digits: int) -> list[float | str]:
    """Rounded to significant digits; what is not finite by its name, since JSON has no number for it."""
    exact_N = values_N.astype(np.float64)
    with np.errstate(all="ignore"):
        exponent_N = np.floor(np.log10(np.abs(exact_N)))
        places_N = np.clip(np.where(np.isfinite(exponent_N), digits - 1 - exponent_N, 0), -300, 300)
        scale_N = 10.0 ** np.abs(places_N)
        # A quotient of two integers is the double next to the decimal number, which is written with these digits alone.
        fraction_N = np.rint(exact_N * scale_N) / scale_N
        whole_N = np.rint(exact_N / scale_N) * scale_N
        rounded_N = np.where(places_N >= 0, fraction_N, whole_N)
    rounded: list[float | str] = np.where(np.isfinite(rounded_N), rounded_N, exact_N).tolist()
    for place in np.flatnonzero(~np.isfinite(exact_N)).tolist():
        rounded[place] = _name(float(exact_N[place]))
    return rounded


def _number(value: float) -> float | str:
    return _numbers(np.array([value]), DIGITS)[0]


def _name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _starts(prompts: Sequence[str]) -> list[str]:
    """Each prompt in one line, cut short; what all of them begin with, such as a system prompt, is left out."""
    lines = [" ".join(prompt.split()) for prompt in prompts]
    common = _common_start(lines)
    left_out = common.rfind(" ") + 1 if len(common) >= COMMON_START else 0
    return [_cut_line(("… " if left_out else "") + line[left_out:]) for line in lines]


def _common_start(lines: Sequence[str]) -> str:
    """What all begin with; nothing where they do not differ."""
    low, high = min(lines, default=""), max(lines, default="")  # whatever these two share, all between them share
    differs = next((place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:differs] if low != high else ""


def _cut_line(line: str) -> str:
    return safe(line if len(line) <= HEAD_CHARACTERS else line[: HEAD_CHARACTERS - 2] + " …")


def _cut(text: str, characters: int) -> str:
    shown = safe(text[:characters], newline="\n")
    return shown + " …" if len(text) > characters else shown
