"""What a run cost: time, tokens, room on disk. From what it recorded; what it did not record has no row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dinghai.errors import DinghaiError
from dinghai.files import read_json
from dinghai.lens.metrics_file import Metrics
from dinghai.lens.series import Row, is_finite, steps_and_values
from dinghai.lens.settings import table
from dinghai.lens.words import counted, duration, joined, percent, rounded, size
from dinghai.trace import TraceReader
from dinghai.trace.schema import MARKER, step_folder, update_number

Cost = tuple[str, str]  # name, value

MARKERS_READ = 500  # of the trace; a longer run's size is reckoned from so many of its steps

# key in the metrics -> what the time went to
_PARTS = {
    "seconds/rollout": "rollouts and rewards",
    "seconds/update": "updates",
    "seconds/recording": "recording",
    "seconds/checkpoint": "checkpoints",
    "seconds/evaluation": "evaluation",
}


def costs(run_folder: Path, metrics: Metrics) -> list[Cost]:
    """Names and values, in words, of what the run's record can tell. Text in it is the run's own, not yet made safe."""
    run_folder = Path(run_folder)
    config = _json(run_folder / "config.json")
    found = [
        *_time(metrics.training),
        *_tokens(metrics.training, config),
        *_trace(run_folder, metrics.training),
        *_checkpoints(run_folder),
    ]
    device = _json(run_folder / "versions.json").get("device")
    if isinstance(device, str):
        found.append(("device", device))
    seed = table(config, "run").get("seed")
    if isinstance(seed, int):
        found.append(("seed", str(seed)))
    return found


def _time(rows: Sequence[Row]) -> list[Cost]:
    """Of the training steps and of the evaluations between them; a cold start and loading are not measured."""
    steps = [value for _, value in steps_and_values(rows, "seconds/step")]
    if not steps:
        return []
    whole = sum(steps) + _sum(rows, "seconds/evaluation")
    found = [("time", f"{duration(whole)} in {counted(len(steps), 'step')}, evaluations included")]
    found += [
        (f"of it {what}", f"{duration(spent)}, {percent(spent / whole)}")
        for key, what in _PARTS.items()
        if (spent := _sum(rows, key)) > 0 and whole > 0
    ]
    return [*found, ("a step", f"{duration(statistics.median(steps))} (median), {duration(max(steps))} at most")]


def _tokens(rows: Sequence[Row], config: dict[str, Any]) -> list[Cost]:
    found = []
    rollout = table(config, "rollout")
    prompts, group = rollout.get("prompts"), rollout.get("group_size")
    # Dynamic sampling goes on with fewer groups where it finds no better ones, and how many is not recorded.
    if isinstance(prompts, int) and isinstance(group, int) and rollout.get("dynamic_sampling") is False:
        sampled = _sum(rows, "completion/length_mean") * prompts * group
        if sampled > 0:
            found.append(("tokens sampled", f"{sampled:,.0f}{_rate(sampled, rows, 'seconds/rollout', 'rollouts')}"))
    trained = _sum(rows, "tokens/loss")
    if trained > 0:
        note = _rate(trained, rows, "seconds/update", "updates")
        found.append(("tokens in the loss", f"{trained:,.0f}, counted in each update{note}"))
    return found


def _rate(tokens: float, rows: Sequence[Row], key: str, what: str) -> str:
    seconds = _sum(rows, key)
    return f"; {rounded(tokens / seconds)} a second of {what}" if seconds > 0 else ""


def _trace(run_folder: Path, rows: Sequence[Row]) -> list[Cost]:
    steps = [row["step"] for row in rows]
    read = steps if len(steps) <= MARKERS_READ else steps[:: math.ceil(len(steps) / MARKERS_READ)]
    trace = run_folder / "trace"
    facts = [one for step in read if (one := _step_on_disk(trace, step)) is not None]
    tokens = sum(rows for _, rows in facts)
    if not tokens:
        return []
    stored = sum(stored for stored, _ in facts)
    about = "about " if len(read) < len(steps) else ""
    whole = stored * len(steps) / len(read)
    return [("trace on disk", f"{about}{size(whole)}, {stored / tokens:.1f} bytes a recorded token")]


def _step_on_disk(trace: Path, step: int) -> tuple[int, int] | None:
    """Bytes of a step, and rows of tokens in it; None where it is not recorded."""
    try:
        written = (step_folder(trace, step) / MARKER).stat()
        return _marked(trace, step, written.st_mtime_ns, written.st_size)
    except (OSError, DinghaiError):
        return None


@lru_cache(maxsize=4 * MARKERS_READ)
def _marked(trace: Path, step: int, written: int, marker_bytes: int) -> tuple[int, int]:
    """`written` is when: a page asks again and again, and the answer changes only with the file."""
    files = TraceReader(trace).marker(step).files
    tokens = sum(facts["rows"] for name, facts in files.items() if update_number(name) is not None)
    return sum(facts["bytes"] for facts in files.values()) + marker_bytes, tokens


def _checkpoints(run_folder: Path) -> list[Cost]:
    folders = sorted(path for path in (run_folder / "checkpoints").glob("step-*") if path.is_dir())
    stored = sum(_bytes(file) for folder in folders for file in folder.glob("*"))
    if not stored:
        return []
    steps = joined([str(int(number)) if (number := folder.name[5:]).isdecimal() else number for folder in folders])
    return [("checkpoints on disk", f"{size(stored)}, after step{'s' if len(folders) > 1 else ''} {steps}")]


def _bytes(file: Path) -> int:
    """0 for one that is no file, or is tidied away just now by the run that writes them."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def _sum(rows: Sequence[Row], key: str) -> float:
    return math.fsum(row[key] for row in rows if is_finite(row, key))


def _json(path: Path) -> dict[str, Any]:
    """An object from a file of the run; empty where it is missing or damaged, which the overview says."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
