"""What must not change the decision about a token: the order of rows, padding, masked positions, micro-batches, parts.

Shapes: B sequences, T tokens of a padded row, N tokens that count (packed). Each law goes through `PolicyLoss`, so that
layout, context, reduction and statistics are held to it as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective import Layout, Normalizer, PolicyLossOutput, Stats
from dinghai.testing.batches import Batch
from dinghai.testing.failure import Measure, compare, fail
from dinghai.testing.laws import EXACT
from dinghai.testing.subject import Subject

LARGEST_EXACT_SUM = 2.0**22  # beyond it, a sum on the grid of stats.py may follow the order in its last digit


def order_of_rows(subject: Subject, batch: Batch, order: Sequence[int]) -> Measure:
    """Rows in another order: the same decision about each token, the same loss, equal sums."""
    return same_batch_retold(subject, batch, order=order, law="order of rows")


def padding(subject: Subject, batch: Batch, columns: int) -> Measure:
    """Further masked columns: no bit changes."""
    return same_batch_retold(subject, batch, columns=columns, law="padding")


def masked_row(subject: Subject, batch: Batch) -> Measure:
    """A further row that is masked altogether: no bit changes."""
    return same_batch_retold(subject, batch, empty_rows=1, law="masked row")


def masked_values(subject: Subject, batch: Batch, value: float) -> Measure:
    """Whatever masked positions hold, NaN or infinity: no bit changes."""
    return same_batch_retold(subject, batch, masked=value, law="masked values")


def same_batch_retold(
    subject: Subject, batch: Batch, *, order: Sequence[int] | None = None, columns: int = 0, empty_rows: int = 0,
    masked: float = torch.nan, law: str = "same batch retold",
) -> Measure:  # fmt: skip
    """Any of the four at once, against the packed batch: loss, gradient, decisions and sums are bit for bit the same.

    In another order the loss is the same up to rounding only; so is the weight, where the rule has a context, whose
    sums run over the whole minibatch.

    Args:
        order: of the rows. columns: masked ones to add on the right. empty_rows: masked altogether, to add below.
        masked: value at every masked position.
    """
    order = range(len(batch.mask_BT)) if order is None else order
    retold = retell(batch, order, columns, empty_rows, masked)
    expected, expected_gradient_N = _backward(subject, batch.packed())
    found, gradient_BT = _backward(subject, retold.padded())
    if bool((gradient_BT[~retold.mask_BT] != 0).any()):
        fail(law, subject, f"a masked position that holds {masked} has a gradient")

    def told(column_BT: Tensor) -> Tensor:
        return _in_old_order(column_BT, batch, order)

    reordered = list(order) != sorted(order)
    rounding = EXACT if reordered and subject.rule.context is not None else 0.0
    for name in ("region", "effect"):
        pair = {f"{name}_code": told(getattr(found.decision, name)), "before": getattr(expected.decision, name)}
        compare(law, subject, batch, 0.0, **pair)
    compare(law, subject, batch, rounding, gradient=told(gradient_BT), before=expected_gradient_N)
    pair = {"weight": told(found.decision.weight), "before": expected.decision.weight}
    measure = compare(law, subject, batch, rounding, **pair)
    _same_loss(law, subject, found.loss, expected.loss, EXACT if reordered else 0.0)
    if rounding == 0:
        _same_sums(law, subject, found.stats, expected.stats)
    return measure


def micro_batches(subject: Subject, batch: Batch, cuts: Sequence[int]) -> Measure:
    """Cut between rows, with normaliser and context of the whole: the same decisions, adding losses, equal sums."""
    law, policy_loss = "micro-batches", subject.policy_loss
    whole = policy_loss(**batch.padded())
    context = policy_loss.context(**batch.padded())
    normalizer = Normalizer(tokens=int(batch.mask_BT.sum()), sequences=int(batch.mask_BT.any(dim=1).sum()))
    parts = [policy_loss(**part.padded(), normalizer=normalizer, context=context) for part in _parts(batch, cuts)]
    for name in ("region", "effect", "weight"):
        joined_BT = torch.cat([getattr(part.decision, name) for part in parts])
        pair = {f"{name}_in_part": joined_BT[batch.mask_BT], "in_whole": getattr(whole.decision, name)[batch.mask_BT]}
        measure = compare(law, subject, batch, 0.0, **pair)
    _same_loss(law, subject, torch.stack([part.loss for part in parts]).sum(), whole.loss, EXACT)
    _same_sums(law, subject, sum((part.stats for part in parts[1:]), parts[0].stats), whole.stats)
    return measure


def parts_of_sequences(subject: Subject, batch: Batch, cuts: Sequence[int]) -> Measure:
    """Cut anywhere, also within sequences: the same decisions, adding losses, equal sums.

    Nothing is measured of a rule that says that it looks at whole sequences, or acts on their ratio.

    Args:
        cuts: positions of the rows laid end to end, [B*T].
    """
    law, policy_loss = "parts of sequences", subject.policy_loss
    if not policy_loss.tokenwise:
        return Measure(0)
    tokens, length = batch.mask_BT.numel(), batch.mask_BT.shape[1]
    names = ("logp_new", "logp_old", "advantage")
    columns: dict[str, Any] = dict(zip(names, (column.reshape(-1) for column in batch.columns), strict=True))
    mask_N = batch.mask_BT.reshape(-1)
    layout = Layout.packed(mask_N.shape, torch.arange(0, tokens + 1, length), mask_N)
    context = policy_loss.context(**columns, mask=mask_N, cu_seqlens=layout.cu_seqlens)
    whole = policy_loss(**columns, layout=layout)
    normalizer = Normalizer.of(layout)
    bounds = sorted({0, tokens, *cuts})
    try:
        parts = [
            policy_loss(
                **{name: column[begin:end] for name, column in columns.items()},
                layout=layout.part(slice(begin, end)),
                normalizer=normalizer,
                context=context,
            )
            for begin, end in pairwise(bounds)
        ]
    except InputError as error:
        fail(law, subject, str(error))
    joined = PolicyLossOutput.joined(parts)
    for name in ("region", "effect", "weight"):
        pair = {
            f"{name}_in_part": getattr(joined.decision, name)[mask_N],
            "in_whole": getattr(whole.decision, name)[mask_N],
        }
        measure = compare(law, subject, batch, 0.0, **pair)
    compare(law, subject, batch, 0.0, factor=joined.factor[mask_N], in_whole=whole.factor[mask_N])
    _same_loss(law, subject, joined.loss, whole.loss, EXACT)
    _same_sums(law, subject, joined.stats, whole.stats)
    return measure


def same_decisions(
    subject: Subject, batch: Batch, order: Sequence[int], columns: int, empty_rows: int, masked: float,
    cuts: Sequence[int],
) -> Measure:  # fmt: skip
    """What of all these laws is the rule's own, at once: retold, cut, and given the context of the whole.

    Surrogate, weight and region of each token are bit for bit the same; so is the context, up to rounding.
    """
    law, retold = "same decisions", retell(batch, order, columns, empty_rows, masked)
    context, context_retold = subject.inputs(batch).context, subject.inputs(retold).context
    for name, expected in context.items():
        if not torch.allclose(context_retold[name].double(), expected.double(), rtol=EXACT, atol=EXACT):
            fail(law, subject, f"the context {name!r} is {context_retold[name].item()!r}, before {expected.item()!r}")
    by_part = [subject.decide(part, context) for part in _parts(retold, cuts)]
    layout = Layout.padded(retold.mask_BT)
    for name, expected_N, *found in zip(
        ("surrogate", "weight", "region_code"), subject.decide(batch, context), *by_part, strict=True
    ):
        told_N = _in_old_order(layout.scatter(torch.cat(found)), batch, order)
        measure = compare(law, subject, batch, 0.0, **{name: told_N, "before": expected_N})
    return measure


def retell(batch: Batch, order: Sequence[int], columns: int, empty_rows: int, masked: float) -> Batch:
    """The same tokens: rows in another order, further masked columns and rows, and this value where they are masked."""
    shuffled = batch.rows(list(order))
    return shuffled.each(
        lambda column: _grown(column.where(shuffled.mask_BT, masked), columns, empty_rows, masked),
        _grown(shuffled.mask_BT, columns, empty_rows, False),
    )


def _in_old_order(column_BT: Tensor, batch: Batch, order: Sequence[int]) -> Tensor:
    """What a retold batch gave, for the tokens of the batch itself: [N]."""
    back = torch.argsort(torch.tensor(list(order), dtype=torch.long))
    return column_BT[back, : batch.mask_BT.shape[1]][batch.mask_BT]


def _parts(batch: Batch, cuts: Sequence[int]) -> list[Batch]:
    rows = len(batch.mask_BT)
    bounds = sorted({0, rows, *(cut for cut in cuts if 0 < cut < rows)})
    return [batch.rows(slice(begin, end)) for begin, end in pairwise(bounds)]


def _grown(column_BT: Tensor, columns: int, rows: int, value: float | bool) -> Tensor:
    return torch.nn.functional.pad(column_BT, (0, columns, 0, rows), value=value)


def _backward(subject: Subject, arguments: dict[str, Any]) -> tuple[PolicyLossOutput, Tensor]:
    leaf = arguments["logp_new"].clone().requires_grad_()
    out = subject.policy_loss(**(arguments | {"logp_new": leaf}))
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    return out, gradient


def _same_loss(law: str, subject: Subject, found: Tensor, expected: Tensor, tolerance: float) -> None:
    if not abs(found.item() - expected.item()) <= tolerance * (1 + abs(expected.item())):
        fail(law, subject, f"the loss is {found.item()!r}, before {expected.item()!r}")


def _same_sums(law: str, subject: Subject, found: Stats, expected: Stats) -> None:
    if not same_sums(found, expected):
        fail(law, subject, f"the statistics are {found.metrics()}, before {expected.metrics()}")


def same_sums(found: Stats, expected: Stats) -> bool:
    """Whether two statistics of the same tokens agree: to the last bit, up to where stats.py promises it."""
    far = expected.sums.abs() >= LARGEST_EXACT_SUM
    close = torch.isclose(found.sums[far], expected.sums[far], rtol=EXACT, atol=0.0)
    same = torch.equal(found.sums[~far], expected.sums[~far]) and torch.equal(found.maxima, expected.maxima)
    return same and bool(close.all())
