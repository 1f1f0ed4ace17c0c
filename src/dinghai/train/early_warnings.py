"""The doctor's checks while a run trains: each that fires is told once, early, and training goes on as without it.

They look after steps 1, 2, 4, 8, …, at the lines of metrics so far and at the steps of the trace that are complete by
then. They draw no random numbers, and one that fails stays silent: `dinghai doctor` will say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinghai.lens.doctor.case import QUICK, Case
from dinghai.lens.doctor.diagnose import examine
from dinghai.lens.doctor.finding import Finding, Grade
from dinghai.lens.metrics_file import Metrics
from dinghai.text import safe


class EarlyWarnings:
    """Tells what looks wrong, each thing once.

    Args:
        folder: the run's.
        config: its settings, as in config.json.
        rows: the lines of metrics of a run that is resumed.
        tell: takes a line.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], rows: Sequence[Mapping[str, Any]], tell: Callable[[str], None]
    ) -> None:
        self._folder, self._config, self._tell = folder, config, tell
        self._rows = [dict(row) for row in rows]
        self._told: set[str] = set()

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A line of metrics, of step 0 or of a training step."""
        self._rows.append(dict(metrics))
        if not _is_due(metrics["step"]):
            return
        case = Case(self._folder, self._config, Metrics(self._rows), QUICK)
        for finding in examine(case, early=True).findings:
            if finding.check not in self._told and finding.grade > Grade.NOTE:
                self._told.add(finding.check)
                self._tell(self._line(metrics["step"], finding))

    def _line(self, step: int, finding: Finding) -> str:
        return safe(f"warning at step {step}: {finding.sentence} `dinghai doctor {self._folder}` tells more.")


def _is_due(step: int) -> bool:
    """After 1, 2, 4, 8, …"""
    return step > 0 and step & (step - 1) == 0
