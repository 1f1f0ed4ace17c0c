"""How a decoding step is run: directly, with the shapes that it needs, or as a CUDA graph of one of a few shapes.

A graph replays the kernels of a step without their launches, which cost more than the kernels for models below about
4 billion parameters. It needs shapes and places that do not change: shapes are rounded up to buckets, of which the
step hides what is too many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

SMALLEST = 8  # rows of the smallest bucket
FEWEST_COLUMNS = 64  # columns of the smallest bucket


@dataclass(frozen=True)
class StepShape:
    """n rows, of which each sees up to t columns of its own; q prompts with g places each; even: all see exactly t."""

    n: int
    t: int
    q: int
    g: int
    even: bool

    def rounded_up(self, most: StepShape) -> StepShape:
        """The bucket that this shape falls into: rows and columns are powers of two, within `most`."""
        n = min(_power_of_two(self.n, SMALLEST), most.n)
        return StepShape(n, min(_power_of_two(self.t, FEWEST_COLUMNS), most.t), min(n, most.q), most.g, False)


class Runner(Protocol):
    """Runs steps; static: of rounded shapes only. checked_every: steps between looks at which rows have finished."""

    static: bool
    checked_every: int

    def run(self, shape: StepShape, step: Callable[[StepShape], None]) -> None: ...


@dataclass
class Direct:
    """Calls the step. With `static` it is the stand-in of graphs where there is no GPU."""

    static: bool = False
    checked_every: int = 1

    def run(self, shape: StepShape, step: Callable[[StepShape], None]) -> None:
        step(shape)


class Graphs:
    """Captures a step the second time that it has a shape: the first time runs it directly, which warms it up.

    failure: why steps are run directly after all, once a capture failed. The graphs hold the memory that the step
    works on, so an object of this class is for one call only.
    """

    static = True
    checked_every = 4  # looking waits for the GPU; rows that ended meanwhile do no harm

    def __init__(self) -> None:
        self._seen: set[StepShape] = set()
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.failure: str | None = None

    def run(self, shape: StepShape, step: Callable[[StepShape], None]) -> None:
        if shape in self._seen and shape not in self._graphs and self.failure is None:
            self._capture(shape, step)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._seen.add(shape)
            step(shape)

    def _capture(self, shape: StepShape, step: Callable[[StepShape], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                step(shape)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # something in the model waits for the GPU, which a graph cannot
            self.failure = (str(error).strip().splitlines() or [type(error).__name__])[0]
            torch.cuda.synchronize()
        else:
            self._graphs[shape] = graph


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())
