"""The runs that are watched: which there are, how far each is, and what is asked of one.

No path ever comes from the browser: a run is asked for by the number that it got here, everything else by numbers too.
Of a run's folder only files of known names are read, and none that a link leads to from outside of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dinghai.errors import InputError
from dinghai.lens.bins import Bins, bins_for
from dinghai.lens.census import RunCensus, census
from dinghai.lens.completions import Spell, group, group_heads
from dinghai.lens.doctor.case import LIVE
from dinghai.lens.failure import FAILURE_FILE
from dinghai.lens.metrics_tail import MetricsTail
from dinghai.lens.rule_facts import readable_rule_facts
from dinghai.text import safe
from dinghai.trace import TraceReader
from dinghai.trace.schema import MARKER, step_folder
from dinghai.view.excerpt import with_token_texts
from dinghai.view.overview import overview
from dinghai.view.replay_data import replay_differences, replay_sums
from dinghai.view.server.seen import CONFIG, METRICS, Seen, Stamp, leads_out_of, modified, stamp_of
from dinghai.view.token_text import TokenText, load_token_text, speller, tokenizer_file

RUNS_AT_MOST = 500  # of a folder that holds runs, the newest
NOTES_AT_MOST = 5
REPLAYS_KEPT = 3  # of a run that grows, for readers who look at one made before


class Gone(InputError):
    """What was asked for is not there: a run, a step, an update, a prompt."""


class Runs:
    """The runs of the folders that were named. `look` is called by one thread, everything else by any.

    Args:
        folders: each a run's, or one that holds runs; such a one may get more.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [Path(folder) for folder in folders]
        self._by_folder: dict[Path, WatchedRun] = {}
        self._order: list[WatchedRun] = []  # replaced as a whole, so that readers never see it change
        self.notes: list[str] = []

    def look(self) -> bool:
        """Look at the disk for new runs and new steps; whether there was any change."""
        found: dict[Path, str] = {}
        notes: list[str] = []
        for folder in self._folders:
            for one in _runs_in(folder, notes):
                found.setdefault(one.resolve(), one.name or one.resolve().name)
        for folder, name in found.items():
            if folder not in self._by_folder:
                self._by_folder[folder] = WatchedRun(len(self._by_folder), folder, name)
        changed = [run.look() for run in self._by_folder.values()]
        is_new = len(self._order) != len(self._by_folder) or notes != self.notes
        order = sorted(self._by_folder.values(), key=lambda run: (-run.begun, run.id))
        _name_apart(order)
        self._order, self.notes = order, notes
        return any(changed) or is_new

    def heads(self) -> dict[str, Any]:
        """What the page lists: the newest run first."""
        return {"runs": [run.head() for run in self._order], "notes": self.notes}

    def run(self, number: int) -> WatchedRun:
        """The run with this number.

        Raises:
            Gone: there is none.
        """
        for run in self._order:
            if run.id == number:
                return run
        raise Gone(f"there is no run number {number}")

    def __len__(self) -> int:
        return len(self._order)


class WatchedRun:
    """One run. What `look` saw decides what its state is; the other methods read the disk when they are called."""

    def __init__(self, number: int, folder: Path, name: str) -> None:
        self.id = number
        self.folder = folder
        self.plain_name = name
        self.name = safe(name)
        self.begun = 0.0  # seconds since 1970, when its settings were written
        self.trace = TraceReader(folder / "trace")
        self._metrics = MetricsTail(folder / METRICS)
        self._lock = threading.Lock()  # of what is read once and kept
        self._text: tuple[Stamp, TokenText | None, Spell | None] | None = None
        self._bins: tuple[Stamp, Bins] | None = None
        self._counted: tuple[Bins, RunCensus] | None = None
        self._replays: dict[int, dict[str, Any] | None] = {}  # by the number of steps that were recorded, the last ones
        self._seen: Seen | None = None
        self._version, self._trace_version = 0, 0

    # --- how far it is ---

    def look(self) -> bool:
        """Look at the run's files; whether anything that the page shows of it changed."""
        before, self._seen = self._seen, Seen.of(self.folder, self._seen)
        now = self._seen
        self.begun = self.begun or now.begun
        if before is not None and now.shown == before.shown:
            return False
        self._version += 1
        if before is None or now.trace != before.trace:
            self._trace_version += 1
        return True

    def head(self) -> dict[str, Any]:
        """Name, state and counters: `version` grows with every change, `trace` with those of the trace."""
        seen = self._seen or Seen.of(self.folder, None)
        return {
            "id": str(self.id),
            "name": self.name,
            "state": seen.state,
            "steps": seen.steps,
            "steps_planned": seen.planned,
            "quiet": round(max(0.0, time.time() - seen.written)) if seen.written else None,
            "note": seen.note,
            "version": self._version,
            "trace": self._trace_version,
        }

    def overview_stamp(self) -> Stamp:
        seen = self._seen
        return ("overview", self.id) if seen is None else ("overview", self.id, seen.files, seen.state)

    def trace_stamp(self) -> Stamp:
        seen = self._seen
        return (self.id,) if seen is None else (self.id, seen.trace, seen.state)

    def step_stamp(self, step: int) -> Stamp:
        """Of one step: a resumed run writes its steps anew."""
        return (self.id, step, stamp_of(step_folder(self.trace.folder, step) / MARKER))

    # --- what is asked of it ---

    def overview(self) -> dict[str, Any]:
        """As `dinghai.view.overview.overview`, with the state as the head has it.

        Raises:
            InputError: it is no run (any more), or its metrics are damaged.
        """
        self._check_links(CONFIG, METRICS, "versions.json", "rule.json", FAILURE_FILE, "trace")
        data = overview(self.folder, self._metrics.read(), LIVE, self.trace)
        head = self.head()
        notes = [self.without_path(note) for note in data["notes"]]
        return data | {
            "name": self.name,
            "state": head["state"],
            "steps_planned": head["steps_planned"],
            "notes": notes,
        }

    def traced(self) -> dict[str, Any]:
        """Which steps can be looked into, and what there is to say about the others."""
        self._check_links("trace")
        if not self.trace.folder.is_dir():
            return {"steps": [], "notes": ["there is no trace yet: no step is complete, or trace.enabled is false"]}
        notes: list[str] = []
        steps = [step for step in self.trace.steps() if not self._leads_out(step, notes)]
        broken = self.trace.incomplete()
        if broken and self.head()["state"] == "running" and max(broken) > max(steps, default=0):
            del broken[max(broken)]  # it is being written
        notes += [f"trace of step {step} is not shown: {why}" for step, why in broken.items()]
        if steps and self._token_text()[0] is None:
            notes.append("the run has no readable tokenizer.json, so tokens are shown by their ids")
        if len(notes) > NOTES_AT_MOST:
            notes[NOTES_AT_MOST - 1 :] = [f"and {len(notes) - NOTES_AT_MOST + 1} more steps are not shown"]
        return {"steps": [self._traced(step) for step in steps], "notes": [self.without_path(note) for note in notes]}

    def census(self, step: int | None, update: int | None) -> dict[str, Any]:
        """As `dinghai.lens.census`: of the run, a step, or an update of a step.

        Raises:
            Gone: there is no such step or update.
            RunFailed: its file is damaged.
        """
        if step is not None:
            self._check_step(step, update)
        else:
            self._check_links("trace", "rule.json")
        steps = [one for one in self.trace.steps() if not self._leads_out(one, [])] if step is None else [step]
        if not steps:
            return {"tokens": 0, "notes": []}  # no error: a run that has just begun is looked at all the time
        bins = self._bins_of_run()
        if step is None and update is None:
            found = self._census_of_run(bins).of(steps)
        else:
            found = census(self.trace, steps, update, bins)
        found["notes"] = [self.without_path(note) for note in found["notes"]]
        return with_token_texts(found, self._token_text()[0])

    def groups(self, step: int) -> list[dict[str, Any]]:
        """The prompts of a step, the one that lost most gradient first.

        Raises:
            Gone: there is no such step.
            RunFailed: its file is damaged.
        """
        self._check_step(step)
        return group_heads(self.trace, step)

    def group(self, step: int, number: int) -> dict[str, Any]:
        """One prompt of a step with its completions.

        Raises:
            Gone: there is no such step or prompt.
            RunFailed: its file is damaged.
        """
        self._check_step(step)
        try:
            return group(self.trace, step, number, self._token_text()[1])
        except InputError as error:
            raise Gone(str(error)) from error

    def replay(self) -> dict[str, Any] | None:
        """As `dinghai.lens.replay_page`: what other bounds and other rules would have decided. A second or two of work.

        Raises:
            InputError: the run's settings or its rule are not known here; or a link leads out of the run.
            RunFailed: a file of the trace is damaged.
        """
        self._check_links(CONFIG, "trace")
        notes: list[str] = []
        if any(self._leads_out(step, notes) for step in self.trace.steps()):
            raise InputError(notes[0])
        page = replay_sums(self.folder)
        with self._lock:
            self._replays[page["about"]["recorded_steps"] if page else 0] = page
            for oldest in list(self._replays)[:-REPLAYS_KEPT]:
                del self._replays[oldest]
        return page

    def replay_group(self, step: int, number: int, update: int, recorded: int) -> dict[str, Any]:
        """The tokens of one prompt that the replay decides otherwise, as `dinghai.view.replay_data` gives them.

        Args:
            recorded: the number of recorded steps that the replay was made with: the values of its bounds are meant.

        Raises:
            Gone: there is no such step, update or prompt; or the replay has been made anew since.
            RunFailed: a file is damaged.
        """
        self._check_links(CONFIG)
        self._check_step(step, update)
        if recorded not in self._replays:
            self.replay()
        page = self._replays.get(recorded)
        if page is None:
            raise Gone("the run has gone on since it was replayed: replay it again")
        shown = self.group(step, number)
        found = replay_differences(self.folder, page, [shown]).get(f"{step}/{number}/{update}")
        return found or {"grid": [], "rules": {}}  # an update that took none of the prompt's completions

    def without_path(self, text: str) -> str:
        """The text with the run's name where its folder's path stands: where it lies is nobody's business."""
        for path in (str(self.folder), safe(str(self.folder))):
            text = text.replace(path, self.plain_name)
        return safe(text)

    # --- what is kept ---

    def _traced(self, step: int) -> dict[str, Any]:
        marker = self.trace.marker(step)
        tokens = [marker.tokens_recorded, marker.tokens_total]
        return {"step": step, "updates": self.trace.updates(step), "tokens": tokens, "groups": marker.groups_recorded}

    def _token_text(self) -> tuple[TokenText | None, Spell | None]:
        """From token ids to their texts, one by one and together; None where the run has no tokenizer (yet)."""
        file = tokenizer_file(self.folder)
        with self._lock:
            stamp = stamp_of(file)
            if self._text is None or self._text[0] != stamp:
                text = None if leads_out_of(self.folder, file) else load_token_text(file)
                self._text = (stamp, text, speller(text) if text is not None else None)
            return self._text[1:]

    def _bins_of_run(self) -> Bins:
        """Chosen once, so that the pictures of a run can be compared; anew when it has twice as many steps."""
        with self._lock:
            steps = self.trace.steps()
            stamp = (len(steps).bit_length(), steps[:1])
            if self._bins is None or self._bins[0] != stamp:
                self._bins = (stamp, bins_for(self.trace, readable_rule_facts(self.folder)))
            return self._bins[1]

    def _census_of_run(self, bins: Bins) -> RunCensus:
        """Kept, so that of a run that grows only the new steps are read."""
        with self._lock:
            if self._counted is None or self._counted[0] != bins:
                self._counted = (bins, RunCensus(self.trace, bins))
            return self._counted[1]

    # --- what is not followed ---

    def _check_links(self, *names: str) -> None:
        """Refuse what a link leads to from outside of the run: a run that came from elsewhere could show any file.

        Raises:
            InputError: one of the names is such a link.
        """
        for name in names:
            if leads_out_of(self.folder, self.folder / name):
                raise InputError(f"{name} of {self.name} is a link that leads out of the run, and is not followed")

    def _check_step(self, step: int, update: int | None = None) -> None:
        notes: list[str] = []
        self._check_links("trace")
        if self._leads_out(step, notes):
            raise InputError(notes[0])
        try:
            updates = self.trace.updates(step)
        except InputError as error:
            raise Gone(str(error)) from error
        if update is not None and update not in updates:
            raise Gone(f"step {step} has no update {update}; it has {updates}")

    def _leads_out(self, step: int, notes: list[str]) -> bool:
        """Whether a step or one of its files is a link to elsewhere; says so in `notes`."""
        folder = step_folder(self.trace.folder, step)
        paths = [folder, folder / MARKER]
        if not any(leads_out_of(self.folder, path) for path in paths):
            try:
                paths = [folder / name for name in self.trace.marker(step).files]
            except InputError:
                return False  # it is not complete, and so nothing of it is read
        leads_out = [path for path in paths if leads_out_of(self.folder, path)]
        if leads_out:
            name = "it" if leads_out[0] == folder else leads_out[0].name
            notes.append(f"step {step} is not shown: {name} is a link that leads out of the run, and is not followed")
        return bool(leads_out)


def _runs_in(folder: Path, notes: list[str]) -> Iterator[Path]:
    """The folder itself where it is a run, or the newest of the runs in it."""
    if _is_run(folder):
        yield folder
        return
    name = safe(folder.name or folder.resolve().name)
    try:
        entries = [Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        notes.append(f"{name}: {error.strerror}")
        return
    runs = []
    for entry in entries:
        if not _is_run(entry):
            continue
        if leads_out_of(folder.resolve(), entry):
            notes.append(f"{name}/{safe(entry.name)} is a link that leads out of {name}: name it to watch it")
        else:
            runs.append(entry)
    if not runs:
        notes.append(f"there is no run in {name} yet: it appears here when it begins")
    if len(runs) > RUNS_AT_MOST:
        notes.append(f"{name} holds {len(runs)} runs, of which the {RUNS_AT_MOST} newest are shown")
        runs = sorted(runs, key=lambda run: -modified(stamp_of(run / CONFIG)))[:RUNS_AT_MOST]
    yield from runs


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / METRICS).is_file()


def _name_apart(runs: Sequence[WatchedRun]) -> None:
    """Runs of the same name are told apart by the folder that they lie in."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.plain_name] = counts.get(run.plain_name, 0) + 1
    for run in runs:
        name = run.plain_name
        run.name = safe(name if counts[name] == 1 else f"{run.folder.parent.name}/{name}")
