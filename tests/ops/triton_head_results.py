"""What the policy head's CUDA kernels compute, in Triton's interpreter on the CPU; test_triton_head.py runs this file.

Run: TRITON_INTERPRET=1 pytest tests/ops/triton_head_results.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinghai.ops import head, triton_head
from dinghai.ops.chunk import Fold
from dinghai.ops.triton_head import TritonKernel

C, H, V = 9, 16, 203  # a block of 128 columns and a part of one


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_head, "BLOCK_COLUMNS", 128)
    monkeypatch.setattr(triton_head, "PART_COLUMNS", 128)


def make(dtype: torch.dtype = torch.float32, vocabulary: int = V) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden_CH = torch.randn(C, H, generator=g).to(dtype)
    weight_VH = torch.randn(vocabulary, H, generator=g).to(dtype)
    logits_CV = hidden_CH.float() @ weight_VH.float().t()
    target_C = torch.multinomial(logits_CV.softmax(1), 1, generator=g)[:, 0]
    target_C[4] = target_C[3]
    return hidden_CH, weight_VH, target_C


def plain(
    hidden_CH: Tensor, weight_VH: Tensor, target_C: Tensor, temperature: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Leaves in `dtype`, log-probabilities and entropies by autograd."""
    hidden_CH, weight_VH = (t.detach().to(dtype).requires_grad_() for t in (hidden_CH, weight_VH))
    logits_CV = (hidden_CH @ weight_VH.t()).to(torch.promote_types(dtype, torch.float32)) / temperature
    logp_CV = torch.log_softmax(logits_CV, 1)
    logp_C, entropy_C = logp_CV.gather(1, target_C[:, None])[:, 0], torch.special.entr(logp_CV.exp()).sum(1)
    return hidden_CH, weight_VH, logp_C, entropy_C


def gradients(
    inputs: tuple[Tensor, Tensor, Tensor],
    coefficient_C: Tensor,
    entropy_coefficient_C: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Fold, Tensor, Tensor]:
    """What the kernel makes of a chunk; rows without a coefficient are left out as `one_pass` leaves them out."""
    kernel = TritonKernel()
    fold = kernel.fold(*inputs, temperature)
    active_C = coefficient_C != 0
    if entropy_coefficient_C is not None:
        active_C |= entropy_coefficient_C != 0
    rows_R = None if active_C.all() else active_C.nonzero()[:, 0]
    grad_hidden_CH = torch.zeros_like(inputs[0])
    weight_grad_VH = torch.zeros(inputs[1].shape)
    kernel.add_gradients(fold, rows_R, coefficient_C, entropy_coefficient_C, grad_hidden_CH, weight_grad_VH)
    return fold, grad_hidden_CH, weight_grad_VH


def reference(
    inputs: tuple[Tensor, Tensor, Tensor],
    coefficient_C: Tensor,
    entropy_coefficient_C: Tensor | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    hidden_CH, weight_VH, logp_C, entropy_C = plain(*inputs, temperature, dtype)
    loss = (coefficient_C * logp_C).sum()
    if entropy_coefficient_C is not None:
        loss = loss + (entropy_coefficient_C * entropy_C).sum()
    loss.backward()
    assert hidden_CH.grad is not None
    assert weight_VH.grad is not None
    return hidden_CH.grad, weight_VH.grad


def distance(a: Tensor, b: Tensor | None) -> float:
    assert b is not None
    return float((a.double() - b.double()).norm() / b.double().norm())


def coefficients(zeros: list[int]) -> Tensor:
    coefficient_C = torch.randn(C, generator=torch.Generator().manual_seed(1))
    coefficient_C[zeros] = 0
    return coefficient_C


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [V, 128, 7])
def test_fold_is_log_softmax(dtype: torch.dtype, vocabulary: int) -> None:
    """Also in bfloat16 log-probabilities are those of the inputs: logits are not rounded before they are summed."""
    inputs = make(dtype, vocabulary)
    fold = TritonKernel().fold(*inputs, 0.7)
    _, _, logp_C, entropy_C = plain(*inputs, 0.7)
    torch.testing.assert_close(fold.logp_C.double(), logp_C.detach(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(fold.entropy_C.double(), entropy_C.detach(), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("zeros", "with_entropy"),
    [([], False), ([0, 2, 3, 7], False), ([6, 7, 8], False), ([], True), ([0, 2, 3, 7], True)],
)
def test_gradients_are_those_of_autograd(zeros: list[int], with_entropy: bool) -> None:
    """With rows left out wherever they stand: their gradient is exactly zero, and no other row's changes."""
    inputs = make()
    entropy_C = coefficients(zeros).roll(1) if with_entropy else None  # some rows have only the one or the other
    _, grad_hidden_CH, weight_grad_VH = gradients(inputs, coefficients(zeros), entropy_C, temperature=1.3)
    right_hidden_CH, right_weight_VH = reference(inputs, coefficients(zeros), entropy_C, temperature=1.3)
    assert distance(grad_hidden_CH, right_hidden_CH) < 1e-6
    assert distance(weight_grad_VH, right_weight_VH) < 1e-6
    assert (grad_hidden_CH[(right_hidden_CH == 0).all(1)] == 0).all()


@pytest.mark.parametrize("with_entropy", [False, True])
def test_bfloat16_is_no_worse_than_autograd(with_entropy: bool) -> None:
    """Distance of both gradients from float64's, against those of autograd through bfloat16 logits.

    Though the interpreter cuts digits off where the device rounds, which doubles the errors of what is stored.
    """
    hidden_CH, weight_VH, _ = make(torch.bfloat16)
    target_C = (2 * hidden_CH.float() @ weight_VH.float().t()).argsort(1)[:, -2]
    inputs = (hidden_CH * 2, weight_VH, target_C)
    entropy_C = coefficients([]).flip(0) if with_entropy else None
    _, *ours = gradients(inputs, coefficients([]), entropy_C)
    naive = reference(inputs, coefficients([]), entropy_C, dtype=torch.bfloat16)
    right = reference(inputs, coefficients([]), entropy_C)
    for mine, theirs, exact in zip(ours, naive, right, strict=True):
        assert distance(mine, exact) < distance(theirs, exact)


def test_nearly_certain_targets_keep_their_digits() -> None:
    """Where p of the target rounds to 1 in bfloat16, the small gradient 1 - p is still right."""
    hidden_CH, weight_VH, _ = make(torch.bfloat16)
    weight_VH[100] = 8 * torch.sign(hidden_CH[0])
    inputs = (hidden_CH[:1].repeat(C, 1), weight_VH * 0.25, torch.full((C,), 100))
    fold, *ours = gradients(inputs, coefficients([]))
    assert (fold.logp_C > -1e-3).all()
    for mine, exact in zip(ours, reference(inputs, coefficients([])), strict=True):
        assert distance(mine, exact) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_whose_logits_grow_beyond_the_range(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that rise by hundreds from block to block: what was stored of the earlier ones is scaled."""
    monkeypatch.setattr(triton_head, "BLOCK_COLUMNS", 64)
    hidden_CH, weight_VH, target_C = make(dtype)
    hidden_CH[:, 0] = 1
    weight_VH[64:, 0] += 150
    weight_VH[128:, 0] += 150
    weight_VH[192:, 0] += 0.5
    inputs = (hidden_CH, weight_VH, torch.where(target_C < 128, target_C + 75, target_C))
    fold, grad_hidden_CH, weight_grad_VH = gradients(inputs, coefficients([]))
    torch.testing.assert_close(fold.logp_C.double(), plain(*inputs, 1.0)[2].detach(), atol=1e-4, rtol=1e-6)
    right_hidden_CH, right_weight_VH = reference(inputs, coefficients([]))
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    # The first column of the head is nearly the same for all tokens, so its part of the gradient is cancelled digits.
    assert distance(grad_hidden_CH[:, 1:], right_hidden_CH[:, 1:]) < tolerance
    assert distance(weight_grad_VH, right_weight_VH) < tolerance


def test_sums_are_added_to_the_buffer_and_a_frozen_head_gets_none() -> None:
    inputs = make()
    _, grad_hidden_CH, once_VH = gradients(inputs, coefficients([1]))
    kernel = TritonKernel()
    total_VH = torch.full((V, H), 3.0)
    for weight_grad_VH in (total_VH, total_VH, None):
        again_CH = torch.zeros_like(inputs[0])
        rows_R = coefficients([1]).nonzero()[:, 0]
        kernel.add_gradients(kernel.fold(*inputs, 1.0), rows_R, coefficients([1]), None, again_CH, weight_grad_VH)
        assert torch.equal(again_CH, grad_hidden_CH)
    torch.testing.assert_close(total_VH, 3 + 2 * once_VH)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy", "ignore::RuntimeWarning:triton")
def test_impossible_tokens_and_errors_show() -> None:
    """Logits of -inf, even a whole first block of them, are probabilities of zero; NaN makes its own row NaN only."""
    hidden_CH, weight_VH, target_C = make()
    hidden_CH[:, 0] = 1
    weight_VH[:130, 0] = float("-inf")
    hidden_CH[2, 5] = float("nan")
    fold = TritonKernel().fold(hidden_CH, weight_VH, target_C.clamp(min=130), 1.0)
    right = TritonKernel().fold(hidden_CH, weight_VH[130:], target_C.clamp(min=130) - 130, 1.0)
    others = torch.arange(C) != 2
    torch.testing.assert_close(fold.logp_C[others], right.logp_C[others])
    torch.testing.assert_close(fold.entropy_C[others], right.entropy_C[others])
    assert fold.logp_C.isfinite().tolist() == others.tolist()
    assert fold.entropy_C.isfinite().tolist() == others.tolist()

    coefficient_C = coefficients([])
    coefficient_C[4] = float("nan")
    _, grad_hidden_CH, weight_grad_VH = gradients(make(), coefficient_C)
    assert grad_hidden_CH.isnan().all(1).tolist() == coefficient_C.isnan().tolist()
    assert weight_grad_VH.isnan().all()


def test_rows_beyond_two_to_the_31_elements() -> None:
    """Offsets of rows are 64-bit. The memory between the rows is never touched, so it is never taken."""
    hidden_CH, weight_VH, target_C = make(torch.bfloat16)
    kernel, usual = TritonKernel(), TritonKernel()
    stride = 2**30 + 16
    kernel._exp_CV = torch.empty(2 * stride + 256, dtype=torch.bfloat16).as_strided((3, 256), (stride, 1))
    fold, expected = (k.fold(hidden_CH[:3], weight_VH, target_C[:3], 1.0) for k in (kernel, usual))
    assert torch.equal(fold.logp_C, expected.logp_C)
    assert torch.equal(kernel._exp_CV[:, :V], usual._exp_CV[:, :V])


def test_driven_by_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`one_pass` over several chunks equals autograd, and `score_head` equals `one_pass` to the bit."""

    def loss_of(rows: slice, logp_C: Tensor, entropy_C: Tensor) -> Tensor:
        return (logp_C.exp() * coefficients([0, 1, 5])[rows] + 0.3 * entropy_C * (logp_C < -5)).sum()

    monkeypatch.setattr(TritonKernel, "chunk_rows", lambda self, vocabulary, dtype: 4)
    monkeypatch.setattr(head, "_kernel_for", lambda hidden_NH: TritonKernel())
    inputs, weight_grad_VH = make(), torch.zeros(V, H)
    out = head.one_pass(*inputs, 0.9, loss_of, weight_grad_VH=weight_grad_VH, entropy_gradient=True)
    for mine, other in zip(head.score_head(*inputs, 0.9), (out.logp_N, out.entropy_N), strict=True):
        assert torch.equal(mine, other)
    hidden_CH, weight_VH, logp_C, entropy_C = plain(*inputs, 0.9)
    loss = loss_of(slice(None), logp_C, entropy_C)
    loss.backward()
    torch.testing.assert_close(out.loss, loss.detach(), atol=1e-6, rtol=1e-6)
    assert distance(out.grad_hidden_NH, hidden_CH.grad) < 5e-6
    assert distance(weight_grad_VH, weight_VH.grad) < 5e-6


def test_same_bits_every_time() -> None:
    inputs = make(torch.bfloat16)
    first, second = (gradients(inputs, coefficients([2])) for _ in range(2))
    assert torch.equal(first[0].logp_C, second[0].logp_C)
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))
