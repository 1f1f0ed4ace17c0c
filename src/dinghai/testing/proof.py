"""All laws on seeded random batches, for one rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from dinghai.objective import Rule, find_rule
from dinghai.testing import invariance, laws
from dinghai.testing.batches import Batch, grid_batch, random_batch
from dinghai.testing.failure import Measure, fail
from dinghai.testing.subject import Subject, subjects

Law = Callable[[Subject, Batch], Measure]
BATCHES = 8  # random ones, for each law and setting
GRADCHECKS = 4  # finite differences are slow
FLAGS = 10_000  # tokens, for the laws about flags
RARE = 100_000  # tokens, to meet what a rule does to a few of them


@dataclass(frozen=True)
class Result:
    """What one law was checked on."""

    law: str
    examples: int  # batches, over all settings
    tokens: int
    largest_error: float  # relative to 1 + |expected|; a share of tokens for "precision keeps flags"


@dataclass(frozen=True)
class Proof:
    """What `prove_rule` found: every law holds, on so much."""

    rule: str
    settings: int
    results: list[Result]

    def __str__(self) -> str:
        lines = [f"rule {self.rule!r} obeys every law, at {self.settings} settings"]
        lines += [f"{'law':<28}{'batches':>9}{'tokens':>12}{'largest error':>16}"]
        lines += [f"{r.law:<28}{r.examples:>9}{r.tokens:>12}{r.largest_error:>16.1e}" for r in self.results]
        return "\n".join(lines)


def prove_rule(name_or_rule: str | Rule, **parameters: float | None) -> Proof:
    """Holds a rule to every law, on the same batches each time.

    Args:
        name_or_rule: a registered name, or a `Rule`.
        parameters: the one setting to prove, beside the rule switched off. By default those of `subjects`: defaults,
            optional parameters on, both ends of the usual range, off; always at every ratio level that the rule allows.

    Raises:
        AssertionError: a law is broken; names the rule, its setting, the law, the token and both numbers.
        InputError: the rule or a parameter does not exist.
    """
    rule = find_rule(name_or_rule) if isinstance(name_or_rule, str) else name_or_rule
    chosen = subjects(rule)
    if parameters:
        given = [Subject(rule, rule.parse(parameters), level) for level in rule.ratio_levels]
        chosen = given + [subject for subject in chosen if subject.is_off]
    results = [_result(law, [run(subject) for subject in chosen]) for law, run in LAWS.items()]
    return Proof(rule.name, len(chosen), [result for result in results if result.examples])


@cache
def small_batches(per_token: bool) -> tuple[Batch, ...]:
    """Random ones; in every other one each token may have an advantage of its own."""
    return tuple(random_batch(seed=seed, per_token=per_token and seed % 2 == 1) for seed in range(BATCHES))


@lru_cache(maxsize=2)
def many_tokens(tokens: int, length: int = 10, seed: int = 0) -> Batch:
    """About so many tokens that count, in sequences of `length`, or fewer where the mask has holes."""
    return random_batch(rows=round(tokens / (0.7 * length)), length=length, seed=seed)


def batches_for(subject: Subject) -> tuple[Batch, ...]:
    """The small batches that the subject's ratio allows: one of a whole sequence asks for one advantage in each."""
    return small_batches(per_token=subject.level != "sequence")


def _each(law: Law) -> Callable[[Subject], list[Measure]]:
    return lambda subject: [law(subject, batch) for batch in batches_for(subject)]


def _with_grid(law: Law) -> Callable[[Subject], list[Measure]]:
    return lambda subject: [law(subject, batch) for batch in (grid_batch(), *batches_for(subject))]


def _gradcheck(subject: Subject) -> list[Measure]:
    held: list[Measure] = []
    for seed in range(4 * GRADCHECKS):
        measure = laws.gradient_is_finite_difference(subject, random_batch(rows=4, length=5, seed=seed))
        held += [measure] if measure.tokens else []
        if len(held) == GRADCHECKS:
            break
    else:
        fail("gradcheck", subject, f"in {4 * GRADCHECKS - len(held)} of {4 * GRADCHECKS} batches a token is at a kink")
    return held


def _on_policy(subject: Subject) -> list[Measure]:
    law = laws.on_policy_is_reinforce
    if "on-policy-reinforce" not in subject.rule.breaks:
        return _with_grid(law)(subject)
    if subject.parameters == subject.rule.parse({}):
        # Declared broken: then it has to be, or the declaration is wrong.
        batches = (grid_batch(), *batches_for(subject), many_tokens(RARE))
        if not any(_is_broken(law, subject, batch) for batch in batches):
            fail("breaks", subject, "it declares that it breaks 'on-policy-reinforce', but at r = 1 every weight is A")
    return []


def _is_broken(law: Law, subject: Subject, batch: Batch) -> bool:
    try:
        law(subject, batch)
    except AssertionError:
        return True
    return False


def _off(subject: Subject) -> list[Measure]:
    return _with_grid(laws.off_is_importance_sampling)(subject) if subject.is_off else []


def _many(law: Law) -> Callable[[Subject], list[Measure]]:
    return lambda subject: [law(subject, many_tokens(FLAGS))]


def _precision(subject: Subject) -> list[Measure]:
    batch = many_tokens(FLAGS)
    return [laws.precision_keeps_flags(subject, batch, dtype) for dtype in (torch.float32, torch.bfloat16)]


def _order(subject: Subject) -> list[Measure]:
    shuffle = random.Random(0)
    return [
        invariance.order_of_rows(subject, batch, shuffle.sample(range(len(batch.mask_BT)), len(batch.mask_BT)))
        for batch in batches_for(subject)
    ]


def _micro_batches(subject: Subject) -> list[Measure]:
    cut = random.Random(0)
    return [
        invariance.micro_batches(subject, batch, cut.sample(range(1, len(batch.mask_BT)), 2))
        for batch in batches_for(subject)
    ]


def _parts(subject: Subject) -> list[Measure]:
    if not subject.policy_loss.tokenwise:
        return []
    cut = random.Random(0)
    return [
        invariance.parts_of_sequences(subject, batch, cut.sample(range(1, batch.mask_BT.numel()), 3))
        for batch in batches_for(subject)
    ]


def _masked_values(subject: Subject) -> list[Measure]:
    values = (torch.nan, torch.inf, -torch.inf, 1e4)
    return [invariance.masked_values(subject, batch, values[i % 4]) for i, batch in enumerate(batches_for(subject))]


LAWS: dict[str, Callable[[Subject], list[Measure]]] = {
    "weight is the gradient": _with_grid(laws.weight_is_gradient),
    "gradcheck": _gradcheck,
    "stopped is zero gradient": _many(laws.stopped_is_zero_gradient),
    "inputs are only read": _each(laws.inputs_are_only_read),
    "never NaN": _each(laws.never_nan),
    "on-policy-reinforce": _on_policy,
    "off is importance sampling": _off,
    "precision keeps flags": _precision,
    "order of rows": _order,
    "padding": _each(lambda subject, batch: invariance.padding(subject, batch, 3)),
    "masked row": _each(invariance.masked_row),
    "masked values": _masked_values,
    "micro-batches": _micro_batches,
    "parts of sequences": _parts,
}


def _result(law: str, by_subject: list[list[Measure]]) -> Result:
    measures = [measure for of_subject in by_subject for measure in of_subject]
    total = sum(measures, Measure(0))
    return Result(law, len(measures), total.tokens, total.largest_error)
