"""Some recorded minibatches of a run, replayed together.

Shapes: N tokens of all of them, end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dinghai.lens.regions import EFFECTS, REGIONS
from dinghai.lens.replay import Minibatch, Replayed, joined
from dinghai.lens.tokens import read_tokens
from dinghai.objective import PolicyLoss
from dinghai.trace import TraceReader

_ROWS_TOGETHER = 150_000


@dataclass(frozen=True)
class Example:
    """A token on which an objective and the run differ."""

    step: int
    update: int
    group: int
    sample: int
    position: int
    token: int
    ratio: float  # that the run's rule saw
    advantage: float
    own: tuple[str, str]  # region and effect
    other: tuple[str, str]
    apart: float  # |difference of f·w·(1-p)|; infinite where it is not known


class Chunk:
    """Minibatches of a run.

    Args:
        places: (step, update) of each.
    """

    def __init__(self, reader: TraceReader, places: Sequence[tuple[int, int]]) -> None:
        self.places = list(places)
        self.minibatches = [read_tokens(reader, step, update) for step, update in places]
        self.tokens = joined(self.minibatches)
        self._reader = reader
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self.minibatches)])

    def update_place(self, updates: Sequence[int]) -> np.ndarray:
        """Where the update of each token stands in a list: [N]."""
        of_minibatch = [updates.index(update) for _, update in self.places]
        return np.repeat(of_minibatch, [len(tokens) for tokens in self.minibatches])

    def replay(self, policy_loss: PolicyLoss) -> Replayed:
        """What an objective decides: at once, or minibatch by minibatch where it looks at all of one."""
        if policy_loss.rule.context is None:
            return self._together.replay(policy_loss)
        each = [Minibatch(tokens).replay(policy_loss) for tokens in self.minibatches]
        return Replayed(self.tokens, joined([one.decided for one in each]))

    def first_change(self, replayed: Replayed) -> tuple[int, int] | None:
        """Step and update of the first token whose weight is not the recorded one; None where there is none."""
        rows = np.flatnonzero(~replayed.same_weight_N)
        return self.places[self._minibatch(int(rows[0]))] if len(rows) else None

    def examples(self, replayed: Replayed, count: int) -> list[Example]:
        """Tokens whose effects differ, those first whose gradients differ most."""
        with np.errstate(invalid="ignore"):
            apart_N = np.abs(replayed.signed_N - replayed.own_signed_N)
        apart_N = np.where(replayed.differ_N, np.nan_to_num(apart_N, nan=np.inf), -1.0)
        rows = np.argpartition(-apart_N, count)[:count] if len(apart_N) > count else np.arange(len(apart_N))
        rows = rows[np.argsort(-apart_N[rows], kind="stable")]
        return [self._example(replayed, row, float(apart_N[row])) for row in rows.tolist() if apart_N[row] >= 0]

    @cached_property
    def _together(self) -> Minibatch:
        return Minibatch(self.tokens)

    def _minibatch(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _example(self, replayed: Replayed, row: int, apart: float) -> Example:
        minibatch = self._minibatch(row)
        step, update = self.places[minibatch]
        sample = int(self.minibatches[minibatch].sample[row - int(self._starts[minibatch])])
        samples = self._reader.samples(step, ["sample", "group"]).to_pydict()
        fate = [
            (REGIONS[int(tokens.region[row])], EFFECTS[int(tokens.effect[row])])
            for tokens in (replayed.tokens, replayed.decided)
        ]
        return Example(
            step=step,
            update=update,
            group=int(samples["group"][samples["sample"].index(sample)]),
            sample=sample,
            position=int(replayed.tokens.position[row]),
            token=int(replayed.tokens.token[row]),
            ratio=float(replayed.tokens.ratio[row]),
            advantage=float(replayed.tokens.advantage[row]),
            own=fate[0],
            other=fate[1],
            apart=apart,
        )


def chunks(reader: TraceReader, steps: Sequence[int]) -> Iterator[Chunk]:
    """The minibatches of some steps, so many at a time as memory allows."""
    places: list[tuple[int, int]] = []
    rows = 0
    for step in steps:
        places += [(step, update) for update in reader.updates(step)]
        rows += rows_of(reader, step)
        if rows >= _ROWS_TOGETHER:
            yield Chunk(reader, places)
            places, rows = [], 0
    if places:
        yield Chunk(reader, places)


def rows_of(reader: TraceReader, step: int) -> int:
    """Rows of a step's updates in the trace: each token as often as it was updated on."""
    files = reader.marker(step).files.items()
    return sum(int(facts["rows"]) for name, facts in files if name.startswith("update"))
