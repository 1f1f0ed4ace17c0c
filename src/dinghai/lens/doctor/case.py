"""A run as the checks of the doctor see it: its settings, its metrics and, of some steps, its trace; each read once.

A step of the trace that is damaged is passed over here: whoever reads the step for its own sake says what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from dinghai.errors import DinghaiError
from dinghai.lens.bins import evenly_spaced
from dinghai.lens.doctor.threshold import Threshold
from dinghai.lens.failure import Failure, read_failure
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.noise import Noise, noise_floor
from dinghai.lens.rule_facts import readable_rule_facts
from dinghai.lens.run_state import RunState, run_state
from dinghai.lens.series import Row, steps_and_values
from dinghai.lens.settings import table
from dinghai.lens.tokens import Tokens, read_tokens
from dinghai.trace import TraceReader
from dinghai.trace.schema import step_folder, update_number

SOLVED = Threshold(
    0.95, "held-out accuracy from which groups agree and entropy falls because the task is done", "arithmetic"
)


@dataclass(frozen=True)
class Reading:
    """How much of a trace the checks may read. Rows are those of tokens, of all updates."""

    steps: int  # at most: the first, the last and some between
    rows: int  # of all these steps; with larger ones fewer of them are read, but one at least
    rows_of_a_step: int  # steps with more are not read


# Some 100 MB; one step alone may take a good part of a gigabyte.
THOROUGH = Reading(steps=12, rows=1_000_000, rows_of_a_step=4_000_000)
# For a page that is asked for again and again: some tenths of a second, and the same as thorough where steps are small.
LIVE = Reading(steps=12, rows=300_000, rows_of_a_step=300_000)
# Beside training.
QUICK = Reading(steps=3, rows=300_000, rows_of_a_step=300_000)


class Case:
    """What the checks look at.

    Args:
        folder: the run's.
        config: its settings as config.json has them; may lack anything.
        metrics: its rows so far.
        reading: how much of the trace may be read.
        trace: a reader of the run's trace that knows it already; None: one is made.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        metrics: Metrics,
        reading: Reading = THOROUGH,
        trace: TraceReader | None = None,
    ) -> None:
        self.folder, self.config = Path(folder), config
        self.rows: Sequence[Row] = metrics.rows
        self.training: Sequence[Row] = metrics.training  # without step 0
        self.reader = trace or TraceReader(self.folder / "trace")
        self._metrics, self._reading = metrics, reading
        self._tokens: dict[tuple[int, int | None], Tokens] = {}

    def table(self, *names: str) -> dict[str, Any]:
        """A table of the settings, e.g. table("objective", "kl"); empty where it is missing or damaged."""
        found = self.config
        for name in names:
            found = table(found, name)
        return found

    def setting(self, path: str) -> Any:
        """A setting by its dotted path, e.g. "update.lr"; None where it is missing."""
        *tables, key = path.split(".")
        return self.table(*tables).get(key)

    @cached_property
    def evaluations(self) -> list[tuple[int, float]]:
        """(step, held-out accuracy), 0 to 1; step 0 is before reinforcement learning."""
        return steps_and_values(self.rows, "held_out/accuracy")

    @cached_property
    def rule_facts(self) -> dict[str, Any] | None:
        """The rule's own account of its boundaries and weights; None where the run has none."""
        return readable_rule_facts(self.folder)

    @cached_property
    def nearest_bound(self) -> float | None:
        """|log r| of the rule's bound nearest to r = 1, by the rule's own account, else by its epsilon; None: it has
        none, or they vary."""
        facts = self.rule_facts
        if facts is not None:
            places = [abs(float(boundary["log_ratio"])) for boundary in facts["boundaries"]]
        else:
            parameters = self.table("objective", "parameters") or self.table("objective")
            offsets = [(name, parameters.get(name)) for name in ("eps_low", "eps_high")]
            places = [
                abs(math.log1p(offset if name == "eps_high" else -offset))
                for name, offset in offsets
                if isinstance(offset, int | float) and 0 < offset < 1
            ]
        return min((place for place in places if place > 0), default=None)

    @cached_property
    def updates_per_batch(self) -> int | None:
        """Optimiser steps on each batch of rollouts."""
        update = self.table("update")
        if isinstance(update.get("epochs"), int) and isinstance(update.get("minibatches"), int):
            return int(update["epochs"] * update["minibatches"])
        counts = [len(row["by_update"]) for row in self.training if isinstance(row.get("by_update"), list)]
        return max(counts, default=None)

    @property
    def of_sequences(self) -> bool:
        """Whether the rule sees the ratio of a completion rather than of a token."""
        return str(self.table("objective").get("ratio")).startswith("sequence")

    @cached_property
    def solved(self) -> bool:
        """Whether the task is as good as done, so that little is left to learn."""
        return bool(self.evaluations) and self.evaluations[-1][1] >= SOLVED.value

    @cached_property
    def noise(self) -> Noise | None:
        """|log π_old - log π_sampler| in the first recorded step; None where it cannot be known."""
        return noise_floor(self.folder, self.config, self.steps[0]) if self.steps else None

    @cached_property
    def failure(self) -> Failure | None:
        """Why the run had to stop; None where it did not, or has been resumed since."""
        return read_failure(self.folder)

    @cached_property
    def state(self) -> RunState:
        """Whether the run still grows."""
        planned = self.setting("run.steps")
        return run_state(self.folder, self._metrics, planned if isinstance(planned, int) else None)

    @cached_property
    def steps(self) -> list[int]:
        """The recorded steps whose tokens the checks look at, none later than the metrics; empty without a trace.

        A step that is a link, or holds one, is left out: the live page serves nothing from outside the run.
        """
        reading, rows = self._reading, self._recorded
        steps = [step for step, number in rows.items() if number <= reading.rows_of_a_step]
        if not steps:
            return []
        affordable = reading.rows // max(1, max(rows[step] for step in steps))
        return evenly_spaced(steps, max(1, min(reading.steps, affordable)))

    @property
    def too_large(self) -> int:
        """How many recorded steps have more tokens than may be read."""
        return sum(number > self._reading.rows_of_a_step for number in self._recorded.values())

    @cached_property
    def _recorded(self) -> dict[int, int]:
        """Recorded step -> rows of its tokens."""
        last = self.rows[-1]["step"] if self.rows else math.inf
        try:
            recorded = [step for step in self.reader.steps() if step <= last and not self._is_linked(step)]
            return {step: self._rows_of(step) for step in recorded}
        except DinghaiError:
            return {}

    def _is_linked(self, step: int) -> bool:
        folder = step_folder(self.reader.folder, step)
        return folder.is_symlink() or any((folder / name).is_symlink() for name in self.reader.marker(step).files)

    def _rows_of(self, step: int) -> int:
        """Of the tokens of all updates of a recorded step."""
        files = self.reader.marker(step).files
        return sum(entry["rows"] for name, entry in files.items() if update_number(name) is not None)

    def updates(self, step: int) -> list[int]:
        """Indices of the updates of a recorded step."""
        return self.reader.updates(step)

    def tokens(self, step: int, update: int | None = None) -> Tokens | None:
        """All columns of the tokens of a recorded step or of one of its updates; None where they cannot be read."""
        key = (step, update)
        if key not in self._tokens:
            try:
                self._tokens[key] = read_tokens(self.reader, step, update)
            except DinghaiError:
                return None
        return self._tokens[key]

    def samples(self, step: int, columns: Iterable[str] | None = None) -> pa.Table | None:
        """The completions of a recorded step; None where they cannot be read."""
        try:
            return self.reader.samples(step, None if columns is None else list(columns))
        except DinghaiError:
            return None

    def group_of(self, step: int) -> dict[int, int]:
        """Sample -> its group, in a recorded step."""
        samples = self.samples(step, ["sample", "group"])
        if samples is None:
            return {}
        return dict(zip(*(samples[name].to_pylist() for name in ("sample", "group")), strict=True))
