"""Whether a run still grows, as far as one can tell from its files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from dinghai.lens.failure import FAILURE_FILE
from dinghai.lens.metrics_file import Metrics

QUIET_SECONDS = 180.0  # without a new line of metrics for so long, or for ten steps, a run counts as stopped

RunState = Literal["running", "finished", "stopped"]


def run_state(run_folder: Path, metrics: Metrics, steps_planned: int | None) -> RunState:
    """Stopped where it left word of a failure. Finished where the planned steps are done; else running while its files
    are young, and stopped after that.

    Young is measured by the slowest of the last steps.
    """
    if (run_folder / FAILURE_FILE).is_file():
        return "stopped"
    done = metrics.rows[-1]["step"] if metrics.rows else 0
    if steps_planned is not None and done >= steps_planned:
        return "finished"
    files = [run_folder / "config.json", run_folder / "metrics.jsonl"]
    written = [file.stat().st_mtime for file in files if file.is_file()]
    took = [row.get("seconds/step") for row in metrics.rows[-10:]]
    slowest = max((one for one in took if isinstance(one, int | float)), default=0.0)
    quiet = time.time() - max(written, default=0.0)
    return "running" if quiet < max(QUIET_SECONDS, 10 * slowest) else "stopped"
