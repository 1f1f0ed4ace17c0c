"""One token in words: the formula with its numbers, the branch that min takes, the gradient and what it is for.

The numbers are those of the rule's own functions; the words are shared with the explainer's page.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinghai.catalogue.explain_rules import OTHER_TOKENS, holds_constant, ratio_kind
from dinghai.catalogue.formulas import FORMULAS, clip_of, figure, formula_for, put_in, symbols
from dinghai.catalogue.lone_tokens import LoneToken, decide_alone
from dinghai.objective import Effect, Parameters, Region, Rule
from dinghai.text import safe
from dinghai.view.explain import Words
from dinghai.view.palette import DARK

NUDGE = 1e-6  # relative step of r, by which a constant is told from a value that moves

_RATIOS = (0.2, 0.5, 0.79, 1.1, 1.3, 2.0, 4.0)


def print_token(
    console: Console, rule: Rule, parameters: Parameters, ratio: float, advantage: float, p_old: float, words: Words
) -> None:
    """All there is to say of one token."""
    token = decide_alone(rule, parameters, ratio, advantage, p_old)
    probability = f", π_old = {figure(p_old)}, π_new = {figure(ratio * p_old)}" if uses_probability(rule) else ""
    console.print(Text(f"r = {figure(ratio)}, A = {figure(advantage)}{probability}", style="bold"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, line in _rows(rule, parameters, token, p_old, words):
        table.add_row(Text(words.say(f"print.{label}") if label else ""), line)
    console.print(table)


def print_heading(console: Console, rule: Rule, parameters: Parameters, words: Words) -> None:
    """The rule, its parameters, and what its ratio is."""
    title = words.say(
        "print.rule", title=safe(words.of_registry(rule.title)), paper=safe(words.of_registry(rule.paper))
    )
    settings = ", ".join(
        words.say("print.setting", name=name, value=words.say("print.off") if value is None else figure(value))
        for name, value in vars(parameters).items()
    )
    console.print(Text.assemble((title, "bold"), "   " if settings else "", settings))
    for line in _notes(rule, words):
        console.print(Text(line))


def _notes(rule: Rule, words: Words) -> Iterator[str]:
    kind = ratio_kind(rule)
    if kind != "token":
        yield words.say(f"print.ratio.{kind}")
    if rule.name not in FORMULAS:
        yield words.say(f"print.alone.{OTHER_TOKENS.get(rule.name, 'own')}")


def _rows(
    rule: Rule, parameters: Parameters, token: LoneToken, p_old: float, words: Words
) -> Iterator[tuple[str, Text]]:
    """Label (a key, "" for none) and line."""
    numbers = symbols(parameters, token, p_old)
    formulas = FORMULAS.get(rule.name)
    if formulas is None:
        yield "formula", Text(safe(words.of_registry(rule.formula)))
        yield "value", Text(f"J = {figure(token.value)}")
    else:
        yield "value", _equation("J", formula_for(formulas.value, token), numbers, token.value)
    for i, line in enumerate(min_sentences(parameters, token, p_old, words)):
        yield "" if i else "min", Text(line)
    without = words.say("print.without", w0=figure(token.weight_unclipped))
    if formulas is None or token.effect is Effect.STOPPED:
        weight = Text(f"w = {figure(token.weight)}", style="bold")
    else:
        weight = _equation("w", formula_for(formulas.weight, token), numbers, token.weight)
    yield "weight", weight
    if token.weight != token.weight_unclipped:
        yield "", Text(without, style="dim")
    yield "region", _region_text(token.region, words)
    yield "effect", Text(words.say(f"effect.name.{token.effect.name.lower()}"))
    kind = gradient_kind(rule, parameters, token, p_old)
    yield "gradient", Text(words.say(f"gradient.{kind}", w=figure(token.weight)))
    if kind in ("up", "down") and holds_constant(rule):
        yield "", Text(words.say("gradient.score"))
    yield "for", Text(purpose(token, words))


def _equation(symbol: str, formula: str, numbers: dict[str, float], result: float) -> Text:
    filled, shown = put_in(formula, numbers), figure(result)
    steps = [f"{symbol} = {formula}", *([] if filled.strip("()") == shown else [filled]), shown]
    return Text(f"\n{' ' * len(symbol)} = ".join(steps))


def _region_text(region: Region, words: Words) -> Text:
    name = region.name.lower()
    return Text.assemble((words.region(name), f"bold {DARK['paper']} on {DARK[name]}"), "  ", words.say(f"who.{name}"))


def min_sentences(parameters: Parameters, token: LoneToken, p_old: float, words: Words) -> Iterator[str]:
    """Both arguments of min, and which is taken; nothing for a rule of another form."""
    clip = clip_of(parameters, p_old)
    if clip is None:
        return
    unclipped, clipped = token.weight_unclipped, clip.clipped(token.ratio) * token.advantage + 0.0
    yield f"r·A = {figure(unclipped)}    clip(r)·A = {figure(clipped)}"
    if token.region is Region.DUAL and clip.last is not None:
        last = clip.last * token.advantage
        yield words.say("min.takes_dual", m=figure(min(unclipped, clipped)), d=figure(last))
    elif token.advantage == 0:
        yield words.say("min.zero")
    elif unclipped == clipped:
        yield words.say("min.equal", a=figure(unclipped))
    elif unclipped < clipped:
        yield words.say("min.takes_unclipped", a=figure(unclipped), b=figure(clipped))
    else:
        yield words.say("min.takes_clipped", a=figure(unclipped), b=figure(clipped))


def gradient_kind(rule: Rule, parameters: Parameters, token: LoneToken, p_old: float) -> str:
    """Which sentence is true of the gradient: the last part of its key.

    "flat" (a constant, so zero), "held" (zero by a stop-gradient), "turning" (zero at this one point), "no_signal"
    (A = 0), "pulled" (A = 0, and not zero), "restored" (the value is constant, the gradient not zero), "up", "down".
    """
    if token.advantage == 0:
        return "pulled" if token.weight != 0 else "no_signal"
    beside = [
        decide_alone(rule, parameters, token.ratio * factor, token.advantage, p_old).value
        for factor in (1 - NUDGE, 1 + NUDGE)
    ]
    is_flat = all(abs(value - token.value) <= 1e-12 * max(1.0, abs(token.value)) for value in beside)
    if token.weight == 0:
        return "flat" if is_flat else "held" if holds_constant(rule) else "turning"
    return "restored" if is_flat else "up" if token.weight > 0 else "down"


def purpose(token: LoneToken, words: Words) -> str:
    """What the rule is after with this token."""
    share = abs(token.weight / token.weight_unclipped) if token.weight_unclipped else 0.0
    return words.purpose(
        token.region.name.lower(), token.effect.name.lower(), f"{figure(float(f'{100 * share:.3g}'))}%"
    )


def uses_probability(rule: Rule) -> bool:
    """Whether the token's probability matters beside its ratio, with the rule's defaults."""
    parameters = rule.parse({})
    for ratio in _RATIOS:
        for advantage in (1.0, -1.0):
            rare, common = (decide_alone(rule, parameters, ratio, advantage, p_old) for p_old in (0.01, 0.2))
            if (rare.value, rare.weight, rare.region) != (common.value, common.weight, common.region):
                return True
    return False
