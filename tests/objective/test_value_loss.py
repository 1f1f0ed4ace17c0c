"""Proves the critic's loss by hand, its gradient by autograd, and its statistics.

Run: pytest tests/objective/test_value_loss.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_batches import REDUCTION_CASES

from dinghai.errors import InputError
from dinghai.objective import Normalizer, Reduction, value_loss

NAN = float("nan")


def batch(rows: int = 6, length: int = 20, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    value_old = torch.randn(rows, length, generator=g, dtype=torch.float64)
    return {
        "value": value_old + 0.4 * torch.randn(rows, length, generator=g, dtype=torch.float64),
        "value_old": value_old,
        "returns": torch.randn(rows, length, generator=g, dtype=torch.float64),
        "mask": torch.rand(rows, length, generator=g) < 0.7,
    }


def test_by_hand() -> None:
    """ε = 0.2. Four tokens: within the band; beyond it and worse clipped; beyond and better clipped; masked."""
    value = torch.tensor([[0.1, 1.0, -1.0, NAN]], dtype=torch.float64).requires_grad_()
    out = value_loss(
        value=value,
        value_old=torch.tensor([[0.0, 0.0, 0.0, NAN]], dtype=torch.float64),
        returns=torch.tensor([[1.0, 2.0, 2.0, NAN]], dtype=torch.float64),
        mask=torch.tensor([[True, True, True, False]]),
        clip=0.2,
    )
    # ½(0.1-1)² = 0.405;  ½ max((1-2)², (0.2-2)²) = ½·3.24 = 1.62, stopped;  ½ max((-1-2)², (-0.2-2)²) = ½·9 = 4.5
    assert out.loss.item() == pytest.approx((0.405 + 1.62 + 4.5) / 3, abs=1e-12)
    out.loss.backward()
    torch.testing.assert_close(value.grad, torch.tensor([[-0.9 / 3, 0.0, -3.0 / 3, 0.0]], dtype=torch.float64))
    metrics = out.stats.metrics()
    assert metrics["value_clip_fraction"] == 1 / 3
    assert metrics["value_error_rms"] == pytest.approx(((0.81 + 1 + 9) / 3) ** 0.5, abs=1e-8)


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("options", REDUCTION_CASES, ids=str)
def test_against_autograd_of_the_formula(clip: float | None, options: dict[str, Any]) -> None:
    arguments = batch()
    value, old, returns, mask = (arguments[k] for k in ("value", "value_old", "returns", "mask"))
    value.requires_grad_()
    per_token = (value - returns) ** 2
    if clip is not None:
        per_token = torch.max(per_token, (old + (value - old).clamp(-clip, clip) - returns) ** 2)
    per_token = 0.5 * per_token * mask
    rows = mask.any(1).sum()
    expected = {
        "token-mean": per_token.sum() / mask.sum(),
        "seq-mean-token-mean": (per_token.sum(1) / mask.sum(1).clamp(min=1)).sum() / rows,
        "seq-mean-token-sum": per_token.sum() / rows,
        "seq-mean-token-sum-norm": per_token.sum() / rows / 7,
        "token-sum": per_token.sum(),
    }[options["reduction"]]
    reduction = Reduction(options["reduction"], options.get("max_length"))
    out = value_loss(**arguments, clip=clip, reduction=reduction)
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(out.loss, value)
    (reference,) = torch.autograd.grad(expected, value)
    torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)
    zero = ((reference == 0) & mask).sum().item() / mask.sum().item()
    assert out.stats.metrics()["value_clip_fraction"] == pytest.approx(zero)
    assert (zero > 0.1) == (clip is not None)


def test_micro_batches_and_packed_add_up() -> None:
    arguments = batch()
    mask = arguments["mask"]
    whole = value_loss(**arguments, clip=0.2)
    normalizer = Normalizer(tokens=int(mask.sum()), sequences=int(mask.any(1).sum()))
    parts = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part_mask = mask[rows]
        packed = {name: arguments[name][rows][part_mask] for name in ("value", "value_old", "returns")}
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), part_mask.sum(1).cumsum(0)])
        parts.append(value_loss(**packed, cu_seqlens=cu_seqlens, clip=0.2, normalizer=normalizer))
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, rtol=1e-12, atol=1e-12)
    assert torch.equal(sum(part.stats for part in parts).sums, whole.stats.sums)


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    perfect = value_loss(value=returns, returns=returns, mask=mask).stats.metrics()
    assert perfect["explained_variance"] == 1.0
    constant = value_loss(value=torch.full((1, 4), 3.0), returns=returns, mask=mask).stats.metrics()
    assert constant["explained_variance"] == pytest.approx(0.0, abs=1e-9)
    half = value_loss(value=torch.tensor([[2.0, 2.5, 3.0, 4.5]]), returns=returns, mask=mask).stats.metrics()
    assert half["explained_variance"] == pytest.approx(0.75, abs=1e-9)  # errors are half of the deviations
    equal = value_loss(value=returns, returns=torch.full((1, 4), 0.1), mask=mask).stats.metrics()
    assert "explained_variance" not in equal
    nothing = value_loss(value=returns, returns=returns, mask=~mask)
    assert nothing.loss.item() == 0.0
    assert nothing.stats.metrics() == {}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"clip": 0.2, "value_old": None}, "needs value_old"),
        ({"clip": 0.0}, "half-width above 0"),
        ({"clip": NAN}, "half-width above 0"),
        ({"returns": torch.zeros(2, 2, dtype=torch.float64)}, "returns has shape"),
        ({"returns": torch.zeros(6, 20, dtype=torch.long)}, "floating-point"),
        ({"mask": None}, "boolean mask"),
    ],
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        value_loss(**(batch() | changes))
