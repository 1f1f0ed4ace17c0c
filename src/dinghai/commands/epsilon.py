"""`dinghai epsilon`: a recommendation for the bounds of a run's rule, with its reasons."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinghai.commands.arguments import find_run, load_rule_files
from dinghai.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from dinghai.lens.epsilon_advice import Advice, BoundAdvice, KnownNoise
    from dinghai.lens.epsilon_evidence import Taken

HELP = "a recommendation for epsilon, with its reasons"
DESCRIPTION = """\
A range for each bound of the run's rule, in the rule's own unit, and a value in it: from the tokens of a recorded run,
the noise of its ratios and what papers have used. It says so where the record supports no advice.
"""
OWN_OPTIONS = frozenset({"--measure", "--json", "--rule-file", "--help"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.usage = "dinghai epsilon RUN [--measure] [--json] [--rule-file FILE.py]"
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name under runs/")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the noise with the run's final model: other micro-batches, padding, precision (by default that "
        "of engine against trainer is taken from the trace, and a small model measured where the trace has none)",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument(
        "--rule-file", metavar="FILE.py", action="append", default=[], help="the file of the run's rule, if it is yours"
    )


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    if overrides:
        raise InputError(
            f"{overrides[0].partition('=')[0]} is not an argument of `dinghai epsilon`: it advises on the run as it "
            "was; for what another value would have decided use `dinghai replay`"
        )
    load_rule_files(options.rule_file)
    folder = find_run(options.run)
    from dinghai.lens.epsilon import advise
    from dinghai.lens.reevaluate import is_cheap

    advice = advise(folder, _measured(folder) if options.measure else ())
    if advice.nothing is not None and advice.nothing.why == "noise-unknown" and is_cheap(folder):
        advice = advise(folder, _measured(folder))
    if options.json:
        print(json.dumps(as_json(advice), indent=1, ensure_ascii=False))
    else:
        _show(advice)


def _measured(folder: Path) -> list[KnownNoise]:
    from dinghai.lens.epsilon_advice import KnownNoise
    from dinghai.lens.reevaluate import reevaluate
    from dinghai.lens.replay import recorded_settings

    settings = recorded_settings(folder)
    found = reevaluate(folder, settings, settings.objective.ratio or "token")
    return [KnownNoise(one.apart, f"{one.name}, measured", one.same_precision) for one in found.comparisons]


# --- the terminal ----------------------------------------------------------------------------------------------------


def _show(advice: Advice) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from dinghai.lens.epsilon_words import sentences
    from dinghai.text import safe

    console = Console(highlight=False)
    rule = advice.policy_loss.rule
    console.print(Text.assemble((safe(str(advice.run)), "bold"), f"   {safe(rule.title)}, {_ratio(advice)}"))
    if advice.tokens:
        console.print(Text(_read(advice)))
    if advice.nothing is None:
        for table in (_summary(advice), *(_values(one) for one in advice.bounds), _noises(advice)):
            console.print(Padding(table, (1, 0, 0, 0)))
    console.print()
    for sentence in sentences(advice):
        console.print(Text(safe(sentence)))
    if advice.changes:
        flags = " ".join(f"--objective.parameters.{name} {value:.12g}" for name, value in advice.changes.items())
        console.print(Text(f"\n{flags}", style="bold"))


def _ratio(advice: Advice) -> str:
    return "ratio of tokens" if advice.policy_loss.ratio == "token" else "ratio of sequences"


def _read(advice: Advice) -> str:
    updates = f"updates 2 to {advice.updates_per_batch}" if advice.updates_per_batch > 2 else "update 2"
    part = f", one completion in {advice.one_in}" if advice.one_in > 1 else ""
    return (
        f"read: {len(advice.steps)} of {advice.steps_recorded} recorded steps{part}, {updates} of each batch, "
        f"{advice.tokens:,} tokens with a signal"
    )


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in (0, len(headings) - 1) else "right", overflow="fold")
    return table


def _summary(advice: Advice) -> Table:
    from rich.text import Text

    from dinghai.lens.epsilon_words import number

    table = _table("bound", "set to", "advice", "range", "unit")
    for one in advice.bounds:
        word = {"keep": "keep", "none": "none", "change": ""}[one.kind]
        advised = Text(word or number(one.suggestion or 0), style="bold")
        table.add_row(one.bound.name, number(one.bound.value), advised, _range_text(one), one.bound.info.unit)
    return table


def _range_text(one: BoundAdvice) -> str:
    from dinghai.lens.epsilon_words import number

    if one.kind == "none":
        return "-"
    if one.low is None:
        return "any" if one.high is None else f"up to {number(one.high)}"
    return f"from {number(one.low)}" if one.high is None else f"{number(one.low)} to {number(one.high)}"


def _values(one: BoundAdvice) -> Table:
    from rich.text import Text

    from dinghai.lens.epsilon_words import number
    from dinghai.lens.words import percent
    from dinghai.text import safe

    nats = "nats a token" if one.bound.of_sequences else "KL there"
    table = _table(one.bound.name, "stopped", "gradient taken", "by update", "by mistake", nats, "")
    table.title = f"{one.bound.name}: of the {one.bound.whose}, in the region {' and '.join(one.bound.regions)}"
    table.title_justify, table.title_style = "left", ""
    for value, row in one.values.items():
        table.add_row(
            number(value), percent(row.taken.stopped), percent(row.taken.gradient), _by_update(row.taken),
            percent(row.mistaken), "" if row.kl is None else f"{row.kl:.2g}", Text(safe("; ".join(_marks(one, value)))),
            style="bold" if value == one.suggestion else "",
        )  # fmt: skip
    return table


def _by_update(taken: Taken) -> str:
    """The share of the gradient in each of the updates, or in the first and the last of many."""
    shares = [f"{share:.0%}" for share in taken.by_update.values()]
    return " ".join(shares) if len(shares) <= 4 else f"{shares[0]} to {shares[-1]}"


def _marks(one: BoundAdvice, value: float) -> list[str]:
    ends = [(one.suggestion, "the advice"), (one.bound.value, "as set"), (one.low, "the range begins")]
    marks = [text for end, text in [*ends, (one.high, "the range ends")] if end == value]
    return marks + [paper.who for paper in one.papers if paper.value == value]


def _noises(advice: Advice) -> Table:
    from dinghai.lens.words import percent

    names = [one.bound.name for one in advice.bounds]
    table = _table(
        "two evaluations of the same weights", "half below", "99% below", *(f"by {name}" for name in names), ""
    )
    table.title, table.title_justify, table.title_style = "noise of log r in nats, and stopped by mistake", "left", ""
    for row in advice.noises:
        apart = row.known.apart
        remark = "the advice goes by it" if row is advice.noises[0] else "" if row.known.of_ratio else "to compare"
        table.add_row(
            row.known.source, f"{apart.quantile(0.5):.1g}", f"{apart.quantile(0.99):.1g}",
            *(percent(row.mistaken[name]) for name in names), remark,
        )  # fmt: skip
    return table


# --- JSON ------------------------------------------------------------------------------------------------------------


def as_json(advice: Advice) -> dict[str, Any]:
    """All of an advice: what was read, the advice on each bound, what each value would take, noise, KL, sentences."""
    import dataclasses

    from dinghai.lens.epsilon_advice import CRITERIA
    from dinghai.lens.epsilon_words import sentences

    nothing = advice.nothing
    return {
        "run": str(advice.run),
        "rule": advice.policy_loss.rule.name,
        "ratio": advice.policy_loss.ratio,
        "no_advice": None if nothing is None else dataclasses.asdict(nothing),
        "changes": advice.changes,
        "bounds": [_bound_json(one) for one in advice.bounds],
        "read": {
            "steps": advice.steps,
            "steps_recorded": advice.steps_recorded,
            "one_completion_in": advice.one_in,
            "updates_per_batch": advice.updates_per_batch,
            "tokens_with_signal": advice.tokens,
            "mean_length": advice.mean_length,
        },
        "noise": [
            {
                "between": row.known.source,
                "of_this_runs_ratios": row.known.of_ratio,
                "of": row.known.apart.what,
                "nats": {share: row.known.apart.quantile(float(share)) for share in ("0.5", "0.95", "0.99", "0.999")},
                "mistaken": row.mistaken,
            }
            for row in advice.noises
        ],
        "kl_old_new_by_update": {str(update): value for update, value in advice.kl_by_update.items()},
        "criteria": {name: dataclasses.asdict(criterion) for name, criterion in CRITERIA.items()},
        "sentences": sentences(advice),
    }


def _bound_json(one: BoundAdvice) -> dict[str, Any]:
    import dataclasses

    return {
        "parameter": one.bound.name,
        "unit": one.bound.info.unit,
        "usual": one.bound.usual,
        "set_to": one.bound.value,
        "advice": one.kind,
        "suggestion": one.suggestion,
        "reason": one.reason,
        "range": [one.low, one.high],
        "no_advice": None if one.nothing is None else dataclasses.asdict(one.nothing),
        "unreachable_good_tokens": None if one.unreachable is None else one.unreachable[0],
        "unreachable_gradient_of_good_tokens": None if one.unreachable is None else one.unreachable[1],
        "kl_share_beyond": one.kl_share_beyond,
        "values": [
            {"value": value, "mistaken": row.mistaken, "nats_at_bound": row.kl}
            | dataclasses.asdict(row.taken)
            | {"published_by": [paper.who for paper in one.papers if paper.value == value]}
            for value, row in one.values.items()
        ],
        "published": [dataclasses.asdict(paper) for paper in one.papers],
    }
