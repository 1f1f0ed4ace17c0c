"""What a training run shows while it runs: one table that is redrawn in a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dinghai.text import safe

REFRESHES_PER_SECOND = 4
PLAIN_LINES = 20  # about how many a run prints where nothing can be redrawn
PLAIN_SECONDS = 30.0  # but a slow run is not silent for longer than this

# label, key in the metrics, how it is written
_COLUMNS: list[tuple[str, str, Callable[[float], str]]] = [
    ("reward", "reward/mean", lambda value: f"{value:.3f}"),
    ("held-out", "held_out/accuracy", lambda value: f"{value:.1%}"),
    ("stopped", "clip/stopped_fraction", lambda value: "<0.1%" if 0 < value < 5e-4 else f"{value:.1%}"),
    ("KL", "clip/kl_old_new_k3", lambda value: f"{value:.2g}"),
    ("entropy", "entropy", lambda value: f"{value:.3f}"),
]
_NOW_AND_THEN = {"held_out/accuracy"}  # the last value is shown until there is another


class TrainProgress:
    """Shows a run as it goes. Use it as a context manager; each call takes microseconds.

    Args:
        total_steps: of the whole run, those before a resume included.
        console: where to; standard output by default.
        clock: seconds that only grow.
    """

    def __init__(
        self, total_steps: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total_steps = total_steps
        self._console = console or Console(highlight=False)
        self._clock = clock
        self._phase = "starting"
        self._done = 0
        self._total = total_steps
        self._first_step: int | None = None  # of this process: a resumed run begins later than 1
        self._started = clock()
        self._last_line = clock()
        self._values: dict[str, float | None] = {}  # of what was ever told; None where the last step had none
        self._cold_start_begun: float | None = None
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=REFRESHES_PER_SECOND
            )

    def __enter__(self) -> TrainProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, text: str) -> None:
        """What is being done now: "loading the model", "cold start", "evaluating"."""
        self._phase = safe(text)
        if self._live is None:
            self._print_plain(self._phase)

    def cold_start(self, step: int, total: int, loss: float) -> None:
        """A step of supervised learning before reinforcement learning; `step` counts from 1."""
        now = self._clock()
        if self._cold_start_begun is None:
            self._cold_start_begun = now
        self._phase, self._done, self._total = f"cold start, loss {loss:.3f}", step, total
        if self._live is None and (step == total or now - self._last_line >= PLAIN_SECONDS):
            self._print_plain(f"cold start {step}/{total}  loss {loss:.3f}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """The line that the step adds to metrics.jsonl; the keys that are shown may be absent. Step 0 is no step."""
        number = int(metrics.get("step", self._done + 1))
        for _, key, _ in _COLUMNS:
            if metrics.get(key) is not None:
                self._values[key] = float(metrics[key])
            elif key in self._values and key not in _NOW_AND_THEN:
                self._values[key] = None
        if number == 0:
            self._announce("before training", metrics)
            return
        if self._first_step is None:
            # The time of the first step counts as well: it began when the last phase did, which is near enough.
            self._first_step, self._started = number, self._clock() - float(metrics.get("seconds/step") or 0.0)
        self._phase, self._done, self._total = "training", number, self.total_steps
        self._announce(f"step {number}", metrics)
        if self._live is None and self._is_due(number, metrics):
            self._print_plain(self._plain_line(number))

    def warn(self, line: str) -> None:
        """A lasting line about something that looks wrong; it scrolls away above the table."""
        if self._live is not None:
            self._console.print(Text(safe(line), style="yellow"))
        else:
            self._print_plain(safe(line))

    def _announce(self, when: str, metrics: Mapping[str, Any]) -> None:
        """A lasting line for each evaluation; it scrolls away above the table."""
        accuracy = metrics.get("held_out/accuracy")
        if accuracy is None:
            return
        if self._live is not None:
            self._console.print(Text(f"{when}: held-out accuracy {float(accuracy):.1%}", style="dim"))
        elif metrics.get("step") == 0:
            self._print_plain(f"{when}: held-out accuracy {float(accuracy):.1%}")

    def _is_due(self, number: int, metrics: Mapping[str, Any]) -> bool:
        every = max(1, math.ceil(self.total_steps / PLAIN_LINES))
        return (
            number in (self._first_step, self.total_steps)
            or number % every == 0
            or metrics.get("held_out/accuracy") is not None
            or self._clock() - self._last_line >= PLAIN_SECONDS
        )

    def _plain_line(self, number: int) -> str:
        cells = [f"{label} {text}" for label, text in self._cells()]
        return "  ".join([f"step {number}/{self.total_steps}", *cells, self._time_left()]).rstrip()

    def _cells(self) -> list[tuple[str, str]]:
        """Label and text of each figure."""
        told = [(label, self._values[key], write) for label, key, write in _COLUMNS if key in self._values]
        return [(label, "–" if value is None else write(value)) for label, value, write in told]

    def _print_plain(self, line: str) -> None:
        self._last_line = self._clock()
        print(line, file=self._console.file, flush=True)

    def _time_left(self) -> str:
        if self._first_step is None:
            return ""
        done_here = self._done - self._first_step + 1
        left = (self._clock() - self._started) / done_here * (self.total_steps - self._done)
        return f"{duration(left)} left" if self._done < self.total_steps else ""

    def _render(self) -> RenderableType:
        """The table. Called by rich's own thread, at most `REFRESHES_PER_SECOND` times a second."""
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._total), completed=self._done, width=24)
        count = f"{self._done}/{self._total}"
        head.add_row(Text(self._phase, style="bold"), bar, Text(count), Text(self._time_left(), style="cyan"))
        if not self._values:
            return head
        shown = self._cells()
        body = Table(box=None, padding=(0, 3, 0, 0), show_edge=False)
        for label, _ in shown:
            body.add_column(label, header_style="dim", justify="left", no_wrap=True)
        body.add_row(*(Text(value) for _, value in shown))
        return Group(head, body)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 4:05; "?" where the time is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
