"""The live display: plain lines without control codes where nothing can be redrawn, one table where it can."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from dinghai.view.progress import TrainProgress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(terminal: bool, steps: int = 40, first: int = 1, seconds: float = 1.0) -> str:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=100)
    with TrainProgress(steps, console=console, clock=clock) as progress:
        progress.phase("loading \x1b[31mthe model")
        for step in range(1, 4):
            progress.cold_start(step, 3, 1.5 / step)
        progress.step({"step": 0, "held_out/accuracy": 0.25})
        for step in range(first, steps + 1):
            clock.now += seconds
            metrics: dict[str, object] = {
                "step": step,
                "reward/mean": step / steps,
                "clip/stopped_fraction": 0.061,
                "clip/kl_old_new_k3": 0.0021,
                "entropy": 0.5,
                "seconds/step": seconds,
            }
            progress.step(metrics | ({"held_out/accuracy": 0.5 + step / 1000} if step % 10 == 0 else {}))
    return out.getvalue()


def test_plain_lines_hold_no_control_codes() -> None:
    text = run(terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "loading \\x1b[31mthe model" in text
    assert "cold start 3/3  loss 0.500" in text
    assert "before training: held-out accuracy 25.0%" in text
    assert "step 10/40  reward 0.250  held-out 51.0%  stopped 6.1%  KL 0.0021  entropy 0.500  0:30 left" in text


def test_plain_lines_are_few() -> None:
    assert len(run(terminal=False, steps=400).splitlines()) <= 60


def test_a_slow_run_is_not_silent() -> None:
    lines = [line for line in run(terminal=False, steps=400, seconds=60).splitlines() if line.startswith("step")]
    assert len(lines) == 400


def test_a_resumed_run_counts_its_own_time() -> None:
    assert "step 32/40" in run(terminal=False, first=31)
    assert "0:08 left" in run(terminal=False, first=31)


def test_the_terminal_shows_the_table_and_gives_the_cursor_back() -> None:
    text = run(terminal=True)
    assert "40/40" in text
    assert "stopped" in text
    assert "6.1%" in text
    assert "\x1b[31mthe model" not in text
    assert text.rstrip().endswith("\x1b[?25h")
    assert "step 40: held-out accuracy 54.0%" in text


def test_metrics_may_be_absent_or_not_finite() -> None:
    out = io.StringIO()
    with TrainProgress(2, console=Console(file=out, force_terminal=False)) as progress:
        progress.step({"step": 1, "reward/mean": float("nan"), "entropy": None})
        progress.step({"step": 2, "clip/kl_old_new_k3": "Infinity"})
    assert "reward nan" in out.getvalue()
    assert "KL inf" in out.getvalue()


def test_a_figure_that_a_step_does_not_have_is_not_that_of_an_earlier_one() -> None:
    """A step in which no token had a signal has no KL; an evaluation holds until the next."""
    out = io.StringIO()
    with TrainProgress(2, console=Console(file=out, force_terminal=False)) as progress:
        progress.step({"step": 1, "reward/mean": 0.5, "clip/kl_old_new_k3": 0.01, "held_out/accuracy": 0.25})
        progress.step({"step": 2, "reward/mean": 1.0})
    assert "step 2/2  reward 1.000  held-out 25.0%  KL –" in out.getvalue()


def test_an_error_leaves_the_display_closed() -> None:
    out = io.StringIO()

    def fail() -> None:
        with TrainProgress(2, console=Console(file=out, force_terminal=True)):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


def test_a_step_costs_next_to_nothing() -> None:
    out = io.StringIO()
    with TrainProgress(10_000, console=Console(file=out, force_terminal=True, width=100)) as progress:
        begun = time.perf_counter()
        for step in range(1, 1_001):
            progress.step({"step": step, "reward/mean": 0.5})
        assert (time.perf_counter() - begun) / 1_000 < 0.001


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (65, "1:05"), (3_723, "1:02:03"), (float("inf"), "?"), (-1, "?")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
