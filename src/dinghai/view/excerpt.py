"""What a report holds of a run's trace: censuses of the run and of a few steps, and completions of these steps.

A trace may be far larger than a page that goes through a mail. So a few telling steps are chosen, of each the prompts
that lost most gradient, and of these as much as an `Extent` allows. Prompts that the page
points to elsewhere are there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinghai.errors import DinghaiError
from dinghai.lens.bins import Bins, bins_for
from dinghai.lens.census import census
from dinghai.lens.completions import Limits, Spell, group, group_heads
from dinghai.lens.words import counted
from dinghai.text import safe
from dinghai.trace import TraceReader
from dinghai.view.token_text import TokenText, speller, visible

NOTES_AT_MOST = 5
_HENCE = ", so no completion can be shown token by token"
UPDATES_AT_MOST = 8  # of a batch, to have a census of each
NAMED_STEPS = 4  # that are there for what is named of them alone
NAMED_GROUPS = 8

Json = dict[str, Any]


@dataclass(frozen=True)
class Extent:
    """How much of the chosen steps is shown."""

    groups: int  # prompts of a step
    limits: Limits  # of a prompt's completions
    by_update: bool = False  # whether there is a census of each update, too


# Tried in order until the page is small enough.
EXTENTS = [
    Extent(4, Limits(8, 600), by_update=True),
    Extent(4, Limits(8, 600)),
    Extent(3, Limits(6, 200)),
    Extent(2, Limits(4, 100)),
    Extent(1, Limits(3, 40)),
]


class Excerpt:
    """The excerpt of one run's trace. What it lacks or cannot read stands in `notes`.

    Args:
        token_text: None where there is no tokenizer, so that ids are shown.
        removed: step -> the share of its gradient that the rule removed, as far as it is known.
        rule_facts: what is known of the rule's bounds.
        named: (step, group) of prompts that the page points to, the most important first.
    """

    def __init__(
        self,
        run_folder: Path,
        token_text: TokenText | None,
        removed: dict[int, float],
        rule_facts: Json | None = None,
        named: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.notes: list[str] = []
        self.chosen = ""  # how the steps were chosen, in words
        self._reader = TraceReader(run_folder / "trace")
        self._token_text = token_text
        self._spell: Spell | None = speller(token_text) if token_text else None
        self._heads: dict[int, list[Json]] = {}
        self._named: dict[int, list[int]] = {}
        self._telling: list[int] = []
        self._censuses: dict[str, Json] = {}
        self._bins: Bins | None = None
        try:
            recorded = self._recorded(run_folder)
            if recorded:
                self._bins = bins_for(self._reader, rule_facts)
                self._take_census("", recorded, None)
        except DinghaiError as error:
            self.notes.append(safe(str(error)))
            return
        self._telling = telling_steps(recorded, removed)
        self._named = _to_show(named, recorded, self._telling)
        for step in sorted({*self._telling, *self._named}):
            try:
                self._heads[step] = group_heads(self._reader, step)
                self._take_census(str(step), [step], None)
            except DinghaiError as error:
                self._heads.pop(step, None)
                self.notes.append(safe(str(error)))
        if self._heads:
            more = [step for step in self._heads if step not in self._telling]
            self.chosen = _chosen([step for step in self._heads if step in self._telling], more, recorded, removed)

    @property
    def steps(self) -> list[int]:
        """The chosen steps, those that could be read."""
        return list(self._heads)

    def take(self, extent: Extent) -> Json:
        """The excerpt as the page reads it: `traced`, `censuses` by "", "STEP" and "STEP/UPDATE", `heads` by "STEP",
        `groups` by "STEP/GROUP"."""
        if extent.by_update:
            self._take_censuses_by_update()
        heads = {str(step): self._shown_heads(step, extent.groups) for step in self._heads}
        groups = {}
        for step, found in heads.items():
            for head in found:
                number = head["group"]
                groups[f"{step}/{number}"] = group(self._reader, int(step), number, self._spell, extent.limits)
        wanted = {key: one for key, one in self._censuses.items() if extent.by_update or "/" not in key}
        return {"traced": self._traced(), "censuses": wanted, "heads": heads, "groups": groups}

    def _shown_heads(self, step: int, at_most: int) -> list[Json]:
        """The prompts of a step that lost most, and those that are named."""
        worst = at_most if step in self._telling else 0
        named = self._named.get(step, [])
        found = enumerate(self._heads[step])
        return [head for place, head in found if place < worst or head["group"] in named]

    def nothing(self) -> Json:
        """As `take`, for a page that is to hold no completion: the census of the run alone."""
        whole = {key: one for key, one in self._censuses.items() if key == ""}
        return {"traced": {"steps": [], "notes": []}, "censuses": whole, "heads": {}, "groups": {}}

    def _recorded(self, run_folder: Path) -> list[int]:
        """The steps that can be read; what is to say about the others goes to the notes."""
        if not (run_folder / "trace").is_dir():
            self.notes.append(
                "there is no trace, so no completion can be shown token by token (trace.enabled was false?)"
            )
            return []
        steps, broken = self._reader.steps(), self._reader.incomplete()
        told = [f"trace of step {step} is not shown: {why}" for step, why in broken.items()]
        if len(told) > NOTES_AT_MOST:
            told[NOTES_AT_MOST - 1 :] = [f"traces of {len(told) - NOTES_AT_MOST + 1} more steps are not shown"]
        self.notes += map(safe, told)
        if not steps:
            self.notes.append(f"the trace has no complete step{_HENCE}")
        return steps

    def _take_census(self, key: str, steps: Sequence[int], update: int | None) -> None:
        found = census(self._reader, steps, update, self._bins)
        self.notes += [safe(note) for note in found["notes"] if safe(note) not in self.notes]
        self._censuses[key] = with_token_texts(found, self._token_text)

    def _take_censuses_by_update(self) -> None:
        for step in self._heads:
            updates = self._reader.updates(step) if step in self._telling else []
            for update in updates if len(updates) <= UPDATES_AT_MOST else []:
                if f"{step}/{update}" not in self._censuses:
                    self._take_census(f"{step}/{update}", [step], update)

    def _traced(self) -> Json:
        steps = []
        for step in self._heads:
            marker = self._reader.marker(step)
            tokens = [marker.tokens_recorded, marker.tokens_total]
            updates = self._reader.updates(step)
            steps.append({"step": step, "updates": updates, "tokens": tokens, "groups": marker.groups_recorded})
        return {"steps": steps, "notes": [self.chosen] if self.chosen else []}


def telling_steps(recorded: Sequence[int], removed: dict[int, float]) -> list[int]:
    """The first, the middle and the last of the recorded steps, and the one in which most gradient was removed."""
    if not recorded:
        return []
    lost_most = max(recorded, key=lambda step: removed.get(step, 0.0))
    return sorted({recorded[0], recorded[len(recorded) // 2], recorded[-1], lost_most})


def with_token_texts(found: Json, token_text: TokenText | None) -> Json:
    """A census whose rows by token have the token's text, safe to show; ids where it is not known."""
    text = visible(token_text) if token_text else "⟨{}⟩".format
    return {**found, "by_token": [{**row, "text": text(row["token"])} for row in found["by_token"]]}


def _to_show(named: Sequence[tuple[int, int]], recorded: Sequence[int], telling: Sequence[int]) -> dict[int, list[int]]:
    """Step -> the groups of it that are named, as many as there is room for."""
    found: dict[int, list[int]] = {}
    for step, number in dict.fromkeys(named):
        others = [one for one in found if one not in telling]
        is_full = step not in telling and step not in found and len(others) >= NAMED_STEPS
        if step in recorded and not is_full and sum(map(len, found.values())) < NAMED_GROUPS:
            found.setdefault(step, []).append(number)
    return found


def _chosen(shown: Sequence[int], more: Sequence[int], recorded: Sequence[int], removed: dict[int, float]) -> str:
    """How the shown steps were chosen, and those that are there because the page names a prompt of them."""
    if len(shown) + len(more) == len(recorded):
        return ""
    lost_most = max(shown, key=lambda step: removed.get(step, 0.0))
    most = ""
    if removed.get(lost_most, 0.0) > 0:
        of_them = lost_most in telling_steps(recorded, {})
        most = f"; in step {lost_most}" if of_them else f", and step {lost_most}, where"
        most += " the rule removed most gradient"
    named = f"; and of {counted(len(more), 'more step')} the prompts that the page points to" if more else ""
    return (
        f"This page holds {len(shown) + len(more)} of the {len(recorded):,} recorded steps: the first, the middle and "
        f"the last{most}{named}. `dinghai watch` shows all of them."
    )
