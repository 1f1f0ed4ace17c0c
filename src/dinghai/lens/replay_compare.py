"""A run against objectives that it was not trained with: sums over all its recorded steps, and tokens that differ.

Shapes: N tokens, U updates of a batch, K sums (`lens.replay.KEYS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dinghai.config.settings import TrainSettings
from dinghai.errors import InputError
from dinghai.lens.bins import evenly_spaced
from dinghai.lens.regions import REGIONS
from dinghai.lens.replay import KEYS, cosine, objective_of, own_sums_of, recorded_settings, sums_of
from dinghai.lens.replay_candidates import Candidate, own_candidate
from dinghai.lens.replay_chunk import Example, chunks, rows_of
from dinghai.lens.words import counted
from dinghai.lens.words import joined as in_words
from dinghai.trace import TraceReader

ROWS_AT_MOST = 2_000_000
_MASKED = REGIONS.index("masked")


@dataclass
class Compared:
    """A candidate, and what it would have decided."""

    candidate: Candidate
    sums: np.ndarray  # [U, K]
    first: tuple[int, int] | None = None  # step and update from which on its weights are not the recorded ones
    examples: list[Example] = field(default_factory=list)


@dataclass
class Comparison:
    """What was read of a run, and what each candidate makes of it."""

    steps: list[int]
    recorded_steps: int
    updates: list[int]
    own: Candidate
    own_sums: np.ndarray  # [U, K], as recorded
    compared: list[Compared]
    tokens: int = 0
    unscored: int = 0
    masked: int = 0
    as_recorded: int = 0  # tokens for which the run's own objective decides as it did
    notes: list[str] = field(default_factory=list)


def value(sums_UK: np.ndarray, key: str) -> float:
    """One of the sums over all updates."""
    return float(sums_UK[..., KEYS.index(key)].sum())


def stopped_fraction(sums_UK: np.ndarray) -> float:
    """Of the tokens with a signal; 0 where there are none."""
    signal = value(sums_UK, "signal")
    return value(sums_UK, "stopped") / signal if signal else 0.0


def removed_share(sums_UK: np.ndarray, region: str | None = None) -> float:
    """Of the gradient that the tokens would have without the rule: in all, or what was taken in one region."""
    gradient = value(sums_UK, "gradient")
    return value(sums_UK, f"removed/{region}" if region else "removed") / gradient if gradient else 0.0


def cosine_of(sums_UK: np.ndarray, own_UK: np.ndarray) -> float:
    """With the run's own gradient, token for token, all updates end to end; NaN where one is 0 or not finite."""
    return cosine(sums_UK.reshape(-1, len(KEYS)).sum(axis=0), own_UK.reshape(-1, len(KEYS)).sum(axis=0))


def compare(
    run_folder: Path, candidates: Sequence[Candidate], steps: Sequence[int] | None = None, examples: int = 3
) -> Comparison:
    """Replays the candidates on the recorded steps of a run.

    Args:
        steps: those that are read; None: all, or as many, evenly spaced, as have `ROWS_AT_MOST` rows.
        examples: tokens that differ, of each candidate.

    Raises:
        InputError: nothing is recorded, or not these steps; or the run's objective is not known.
        RunFailed: a file is damaged.
    """
    run_folder = Path(run_folder)
    settings = recorded_settings(run_folder)
    own = objective_of(settings)
    reader = TraceReader(run_folder / "trace")
    recorded = reader.steps()
    if not recorded:
        why = "; ".join(f"step {step}: {why}" for step, why in list(reader.incomplete().items())[:1])
        raise InputError(f"{run_folder} has no recorded step to replay: {why or 'was trace.enabled false?'}")
    read = _steps_to_read(reader, recorded, steps)
    updates = sorted({update for step in read for update in reader.updates(step)})
    shape = (len(updates), len(KEYS))
    found = Comparison(read, len(recorded), updates, own_candidate(own), np.zeros(shape), [])
    found.compared = [Compared(one, np.zeros(shape)) for one in candidates]
    for chunk in chunks(reader, read):
        part_N = chunk.update_place(updates)
        own_replayed = chunk.replay(own)
        found.tokens += len(chunk.tokens)
        found.unscored += int((~chunk.tokens.scored).sum())
        found.masked += int((chunk.tokens.region == _MASKED).sum())
        found.as_recorded += int(own_replayed.as_recorded_N.sum())
        found.own_sums += own_sums_of(own_replayed, part_N, len(updates))
        for one in found.compared:
            replayed = chunk.replay(one.candidate.policy_loss)
            one.sums += sums_of(replayed, part_N, len(updates))
            one.first = one.first or chunk.first_change(replayed)
            both = [*one.examples, *chunk.examples(replayed, examples)]
            one.examples = sorted(both, key=lambda example: -example.apart)[:examples]
    found.notes = _notes(found, reader, settings)
    return found


def _steps_to_read(reader: TraceReader, recorded: list[int], steps: Sequence[int] | None) -> list[int]:
    if steps is not None:
        asked = set(steps)
        read = [step for step in recorded if step in asked]
        if not read:
            raise InputError(
                f"none of the steps asked for is recorded: the trace holds {counted(len(recorded), 'step')}, "
                f"{recorded[0]} to {recorded[-1]}"
            )
        return read
    rows = [rows_of(reader, step) for step in recorded]
    count = ROWS_AT_MOST * len(recorded) // max(sum(rows), 1)
    return evenly_spaced(recorded, max(count, 1))


def _notes(found: Comparison, reader: TraceReader, settings: TrainSettings) -> list[str]:
    """What a reader of the figures has to know, but for that a replay is first-order."""
    notes = []
    if len(found.steps) < found.recorded_steps:
        notes.append(f"{len(found.steps):,} of the {found.recorded_steps:,} recorded steps were read.")
    whole = all(reader.marker(step).groups_recorded == reader.marker(step).groups_total for step in found.steps)
    if not whole:
        notes.append("The trace's budget left some prompts out; all figures are of those that it holds.")
    if found.as_recorded < found.tokens:
        notes.append(
            f"Of {found.tokens:,} recorded decisions {found.as_recorded:,} were reproduced with the run's own "
            "settings; for the others the last digits differ, as they do between devices, or their minibatch is not "
            "all there."
        )
    objectives = [found.own, *(one.candidate for one in found.compared)]
    partly = [one.label for one in objectives if one.looks_at_minibatch] if found.unscored or not whole else []
    if partly:
        notes.append(
            f"{in_words(list(dict.fromkeys(partly)))} would look at the whole minibatch, but the trace has the "
            "log-probs of a part of it: what follows for them is an estimate from that part."
        )
    if found.unscored:
        notes.append(
            f"{found.unscored:,} of {found.tokens:,} rows are of tokens that were never scored, since no token of "
            "their sample had an advantage; they stay without a signal."
        )
    if any(one.policy_loss.ratio != found.own.policy_loss.ratio for one in objectives):
        notes.append(
            "Where a rule looks at another ratio than the run's, the share of gradient removed is of its own r·A."
        )
    if settings.objective.kl.beta > 0 and settings.objective.kl.where == "loss":
        notes.append("The KL penalty in the loss is left out of all gradients here: no decision depends on it.")
    if settings.objective.entropy_bonus > 0:
        notes.append("The entropy bonus is left out of all gradients here: no decision depends on it.")
    return notes
