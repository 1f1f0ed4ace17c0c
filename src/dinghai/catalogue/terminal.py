"""`dinghai rules` and `dinghai rules NAME`."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dinghai.catalogue.weights import WeightRow, weight_table
from dinghai.catalogue.words import (
    SYMBOLS,
    defaults_text,
    documentation,
    number,
    region_text,
    rules_in_order,
    short_source,
    unwrapped,
    usual_sequence_text,
    usual_text,
    weight_note,
    weight_text,
)
from dinghai.objective import Rule, guard_rails
from dinghai.objective.correction import CORRECTIONS
from dinghai.objective.parameters import describe
from dinghai.text import safe


def print_rules(console: Console) -> None:
    """Every rule, a line or two each, and every rollout correction."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("rule", no_wrap=True)
    for heading in ("weight", "parameters"):
        table.add_column(heading, overflow="fold")
    table.add_column("source", no_wrap=True)
    for rule in rules_in_order():
        table.add_row(
            *map(_plain, (rule.name, weight_text(rule), defaults_text(rule.describe()), short_source(rule.paper)))
        )
    corrections = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("rollout correction", "what it is", "parameters"):
        corrections.add_column(heading, overflow="fold")
    for name, kind in CORRECTIONS.items():
        corrections.add_row(*map(_plain, (name, kind.title, defaults_text(describe(kind)))))
    console.print(Padding(Text(SYMBOLS), (0, 0, 1, 0)))
    console.print(Group(table, Text(""), corrections))
    console.print(
        "\n`dinghai rules NAME` explains one. In a run: --objective.rule NAME,\n"
        "--objective.parameters.PARAMETER VALUE, --objective.corrections.NAME.PARAMETER VALUE.",
        markup=False,
        highlight=False,
    )


def print_rule(console: Console, rule: Rule, given: dict[str, float | None]) -> None:
    """One rule: its paper, its formulas, its parameters, and its weight as a table, for the parameters given.

    Raises:
        InputError: the rule has no such parameter, or a value is out of range.
    """
    parameters = rule.parse(given)
    parts: list[RenderableType] = [
        Text.assemble((safe(rule.title), "bold"), f"   {safe(rule.paper)}"),
        Text(""),
        Text(safe(unwrapped(documentation(rule)), newline="\n")),
        Text(""),
    ]
    if rule.describe():
        parts += [_parameter_table(rule, vars(parameters)), Text("")]
    parts += [_facts(rule), Text(""), _weights(weight_table(rule, given)), Text(""), Text(weight_note(rule))]
    console.print(Group(*parts))
    for sentence in guard_rails(rule, parameters, rule.ratio_levels[0]):
        console.print(Text(f"\nwarning: {sentence}"))


def _facts(rule: Rule) -> Text:
    several = " (the first is the default)" if len(rule.ratio_levels) > 1 else ""
    lines = [
        f"ratio      {', '.join(rule.ratio_levels)}{several}",
        f"reduction  {rule.reduction}",
        f"weight     {weight_text(rule)}",
        f"zero       {rule.zero}",
    ]
    lines += [f"at r = 1   not REINFORCE: {reason}" for reason in rule.breaks.values()]
    return Text(safe("\n".join(lines), newline="\n"))


def _parameter_table(rule: Rule, values: dict[str, float | None]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("parameter", "value", "unit", "usual", "what it does"):
        table.add_column(heading, overflow="fold")
    for info in rule.describe():
        usual = usual_text(info) if rule.ratio_levels[0] == "token" else usual_sequence_text(info)
        table.add_row(*map(_plain, (info.name, number(values[info.name]), info.unit, usual, info.description)))
    return table


def _weights(rows: list[WeightRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("r", justify="right")
    for sign in ("A > 0", "A < 0"):
        table.add_column(sign, justify="right")
        table.add_column("")
    for row in rows:
        table.add_row(
            number(row.ratio), number(row.weight_good), region_text(row.region_good), number(row.weight_bad),
            region_text(row.region_bad),
        )  # fmt: skip
    return table


def _plain(text: str) -> Text:
    return Text(safe(text))
