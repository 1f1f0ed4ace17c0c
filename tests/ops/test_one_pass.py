"""The head in one pass gives what autograd gives through whole logits, whatever the rule, and does no work in vain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective import RULES, Layout, Normalizer, PolicyLoss
from dinghai.ops import fold, head
from dinghai.ops.fold import TorchKernel
from dinghai.ops.head import OnePass, one_pass, score_head, token_log_probs

H, V = 8, 61
LENGTHS = [3, 1, 4, 0, 23, 2, 12, 5]  # of the sequences; with five rows a chunk, two of them fill several
N = sum(LENGTHS)
CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0)
TEMPERATURE = 0.7
# Rows of a chunk: one, a few, and more than there are.
CHUNKS = pytest.mark.parametrize("rows", [1, 5, 1000])


@dataclass(frozen=True)
class Batch:
    hidden_NH: Tensor
    weight_VH: Tensor
    target_N: Tensor
    advantage_B: Tensor

    @classmethod
    def random(cls, dtype: torch.dtype = torch.float32) -> Batch:
        random = torch.Generator().manual_seed(1)
        hidden_NH, weight_VH = (0.5 * torch.randn(n, H, generator=random).to(dtype) for n in (N, V))
        advantage_B = torch.randn(len(LENGTHS), generator=random)
        advantage_B[2] = 0.0
        return cls(hidden_NH, weight_VH, torch.randint(V, (N,), generator=random), advantage_B)

    def in_float64(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Leaves of hidden states and head, and log-probs and entropies by autograd through whole logits."""
        hidden_NH, weight_VH = (x.double().requires_grad_() for x in (self.hidden_NH, self.weight_VH))
        logp_NV = torch.log_softmax(hidden_NH @ weight_VH.t() / TEMPERATURE, dim=1)
        logp_N = logp_NV.gather(1, self.target_N[:, None])[:, 0]
        return hidden_NH, weight_VH, logp_N, -(logp_NV.exp() * logp_NV).sum(1)

    def one_pass(self, loss_of: head.LossOf, **options: Any) -> tuple[OnePass, Tensor]:
        weight_grad_VH = torch.zeros(V, H)
        passed = one_pass(
            self.hidden_NH,
            self.weight_VH,
            self.target_N,
            TEMPERATURE,
            loss_of,
            weight_grad_VH=weight_grad_VH,
            **options,
        )
        return passed, weight_grad_VH


@pytest.fixture
def chunks_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_rows(rows: int) -> None:
        monkeypatch.setattr(fold, "CHUNK_ELEMENTS", rows * V)
        monkeypatch.setattr(fold, "CHUNK_ROW_BYTES", 0)
        monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 2 * V)
        monkeypatch.setattr(fold, "VOCABULARY_BLOCK", 16)

    return set_rows


def distance(mine: Tensor, right: Tensor) -> float:
    return float((mine.double() - right).norm() / right.norm())


def assert_same(
    passed: OnePass, weight_grad_VH: Tensor, loss: Tensor, leaves: tuple[Tensor, ...], rounding: float = 1e-6
) -> None:
    """One pass in float32 against autograd in float64."""
    hidden_NH, weight_VH, logp_N, entropy_N = leaves
    loss.backward()
    assert distance(passed.logp_N, logp_N.detach()) < 1e-6
    assert distance(passed.entropy_N, entropy_N.detach()) < 1e-6
    assert hidden_NH.grad is not None
    assert weight_VH.grad is not None
    assert distance(passed.grad_hidden_NH, hidden_NH.grad) < rounding
    assert distance(weight_grad_VH, weight_VH.grad) < rounding
    torch.testing.assert_close(passed.loss, loss.detach(), rtol=1e-5, atol=1e-6)


# SPO's weight is a distance of the ratio from 1 divided by ε: so are the ratio's roundings.
ROUNDING = {"spo": 3e-6}
OBJECTIVES: dict[str, dict[str, Any]] = {
    **{f"{name}, {level}": {"rule": name, "ratio": level} for name in RULES for level in RULES[name].ratio_levels},
    "dual clip": {"rule": "ppo", "dual_clip": 1.5},
    "KL in the loss": {"rule": "grpo", "kl": "k3", "beta": 0.3},
}


@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.filterwarnings("ignore::UserWarning")  # unusual bounds: what is meant is that some tokens are stopped
@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_every_rule_has_the_gradient_of_autograd(options: dict[str, Any], rows: int, chunks_of: Any) -> None:
    """Of hidden states and head, to 1e-6: rows apart where a token is decided alone, else whole sequences."""
    chunks_of(rows)
    batch, loss = Batch.random(), PolicyLoss(**options)
    leaves = batch.in_float64()
    random = torch.Generator().manual_seed(2)
    logp_old_N = leaves[2].detach().float().double() + 0.25 * torch.randn(N, generator=random).double()
    logp_ref_N = None if loss.kl is None else logp_old_N + 0.2 * torch.randn(N, generator=random).double()
    layout = Layout.packed(torch.Size([N]), CU_SEQLENS)
    advantage_N = batch.advantage_B.repeat_interleave(torch.tensor(LENGTHS))
    normalizer = Normalizer(N, len(LENGTHS) - 1)
    given = {"logp_old": logp_old_N, "advantage": advantage_N.double(), "layout": layout, "logp_ref": logp_ref_N}
    context = loss.context(
        logp_new=leaves[2].detach(), logp_old=logp_old_N, advantage=given["advantage"], cu_seqlens=CU_SEQLENS
    )
    right = loss(logp_new=leaves[2], normalizer=normalizer, context=context, **given).loss

    def loss_of(part: slice, logp_C: Tensor, entropy_C: Tensor) -> Tensor:
        return loss(
            logp_new=logp_C,
            logp_old=logp_old_N[part].float(),
            advantage=advantage_N[part],
            layout=layout.part(part),
            logp_ref=None if logp_ref_N is None else logp_ref_N[part].float(),
            normalizer=normalizer,
            context=None if context is None else {k: v.float() for k, v in context.items()},
        ).loss

    cu_seqlens = None if loss.tokenwise else CU_SEQLENS
    passed, weight_grad_VH = batch.one_pass(loss_of, cu_seqlens=cu_seqlens)
    assert_same(passed, weight_grad_VH, right, leaves, ROUNDING.get(options["rule"], 1e-6))


@CHUNKS
@pytest.mark.parametrize("cu_seqlens", [None, CU_SEQLENS], ids=["rows", "sequences"])
def test_an_entropy_bonus_has_its_gradient(rows: int, cu_seqlens: Tensor | None, chunks_of: Any) -> None:
    """Also where a row has only one of the two coefficients."""
    chunks_of(rows)
    batch = Batch.random()
    coefficient_N, bonus_N = torch.randn(2, N, generator=torch.Generator().manual_seed(3))
    coefficient_N[::2] = 0.0
    bonus_N[::3] = 0.0
    leaves = batch.in_float64()
    right = (coefficient_N * leaves[2]).sum() + (bonus_N * leaves[3]).sum()
    passed, weight_grad_VH = batch.one_pass(
        lambda part, logp_C, entropy_C: (coefficient_N[part] * logp_C).sum() + (bonus_N[part] * entropy_C).sum(),
        entropy_gradient=True,
        cu_seqlens=cu_seqlens,
    )
    assert_same(passed, weight_grad_VH, right, leaves)


@pytest.mark.parametrize("rows", [5, 1000])
def test_bfloat16_is_no_further_off_than_autograd(rows: int, chunks_of: Any) -> None:
    """Against float64 gradients of the same bfloat16 numbers; the head's gradient in float32 all the same."""
    chunks_of(rows)
    batch = Batch.random(torch.bfloat16)
    leaves = batch.in_float64()
    coefficient_N = torch.randn(N, generator=torch.Generator().manual_seed(3))
    (coefficient_N * leaves[2]).sum().backward()
    hidden_NH, weight_VH = batch.hidden_NH.clone().requires_grad_(), batch.weight_VH.clone().requires_grad_()
    plain_N, _ = token_log_probs(hidden_NH, lambda x: x @ weight_VH.t(), batch.target_N, V, TEMPERATURE)
    (coefficient_N * plain_N).sum().backward()
    passed, weight_grad_VH = batch.one_pass(lambda part, logp_C, _: (coefficient_N[part] * logp_C).sum())
    assert passed.grad_hidden_NH.dtype == torch.bfloat16
    for mine, plain, right in (
        (passed.grad_hidden_NH, hidden_NH.grad, leaves[0].grad),
        (weight_grad_VH, weight_VH.grad, leaves[1].grad),
    ):
        assert plain is not None
        assert distance(mine, right) < 1.1 * distance(plain, right) < 0.01


@CHUNKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cu_seqlens", [None, CU_SEQLENS], ids=["rows", "sequences"])
def test_scoring_gives_the_bits_of_the_pass(
    rows: int, dtype: torch.dtype, cu_seqlens: Tensor | None, chunks_of: Any
) -> None:
    """So that the ratio of the first update is exactly 1."""
    chunks_of(rows)
    batch = Batch.random(dtype)
    passed, _ = batch.one_pass(lambda part, logp_C, _: logp_C.sum(), cu_seqlens=cu_seqlens)
    logp_N, entropy_N = score_head(batch.hidden_NH, batch.weight_VH, batch.target_N, TEMPERATURE, cu_seqlens=cu_seqlens)
    assert torch.equal(logp_N, passed.logp_N)
    assert torch.equal(entropy_N, passed.entropy_N)


def test_chunks_do_not_change_a_bit_of_a_row(chunks_of: Any) -> None:
    """Row by row the same arithmetic: where the product does not round otherwise, neither does the rest."""
    logits_NV = torch.randn(N, V, generator=torch.Generator().manual_seed(4))
    results = []
    for rows in (1, 5, 1000):
        chunks_of(rows)
        results.append(score_head(logits_NV, torch.eye(V), torch.arange(N) % V, 1.0))
    for logp_N, entropy_N in results[1:]:
        assert torch.equal(logp_N, results[0][0])
        assert torch.equal(entropy_N, results[0][1])


class CountingKernel(TorchKernel):
    """Notes how many rows each fold and each pair of gradient products has."""

    folded: list[int]
    with_gradient: list[int]

    def fold(self, hidden_CH: Tensor, *rest: Any) -> fold.Fold:
        self.folded.append(hidden_CH.shape[0])
        return super().fold(hidden_CH, *rest)

    def add_gradients(self, folded: fold.Fold, rows_R: Tensor | None, *rest: Any) -> None:
        self.with_gradient.append(folded.hidden_CH.shape[0] if rows_R is None else rows_R.numel())
        super().add_gradients(folded, rows_R, *rest)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountingKernel:
    kernel = CountingKernel()
    kernel.folded, kernel.with_gradient = [], []
    monkeypatch.setattr(head, "_kernel_for", lambda _: kernel)
    return kernel


def test_rows_without_weight_do_no_work(counted: CountingKernel, chunks_of: Any) -> None:
    """They leave before the gradient products, their own gradient is exactly 0, and the others' is as before."""
    chunks_of(10)
    batch = Batch.random()
    coefficient_N = torch.randn(N, generator=torch.Generator().manual_seed(3))
    coefficient_N[10:40] = 0.0
    coefficient_N[3] = 0.0
    leaves = batch.in_float64()
    passed, weight_grad_VH = batch.one_pass(lambda part, logp_C, _: (coefficient_N[part] * logp_C).sum())
    assert counted.folded == [10] * 5
    assert counted.with_gradient == [9, 10]
    assert (passed.grad_hidden_NH[coefficient_N == 0] == 0).all()
    assert_same(passed, weight_grad_VH, (coefficient_N * leaves[2]).sum(), leaves)


@pytest.mark.parametrize("loss", [lambda logp_C: 0 * logp_C.sum(), lambda logp_C: torch.tensor(1.0)])
def test_a_loss_without_gradient_makes_no_products(loss: Any, counted: CountingKernel) -> None:
    """Whether all its derivatives are 0 or it does not depend on the log-probs at all."""
    passed, weight_grad_VH = Batch.random().one_pass(lambda part, logp_C, _: loss(logp_C))
    assert counted.with_gradient == []
    assert not passed.grad_hidden_NH.any()
    assert not weight_grad_VH.any()


def test_logits_are_made_twice_only_of_sequences_longer_than_a_chunk(counted: CountingKernel, chunks_of: Any) -> None:
    """And of those, not those of their last chunk, which are still there, nor of one that has no gradient at all."""
    chunks_of(10)
    silent_N = torch.ones(N)
    silent_N[31:43] = 0.0  # the second long one
    Batch.random().one_pass(lambda part, logp_C, _: (silent_N[part] * logp_C).sum(), cu_seqlens=CU_SEQLENS)
    assert counted.folded == [8, 8, 8, 7, 8, 8, 2, 6, 6, 5]


def test_the_loss_sees_whole_sequences(chunks_of: Any) -> None:
    chunks_of(5)
    seen: list[slice] = []
    Batch.random().one_pass(
        lambda part, logp_C, _: seen.append(part) or logp_C.sum(),  # type: ignore[func-returns-value]
        cu_seqlens=CU_SEQLENS,
    )
    assert {part.start for part in seen} | {part.stop for part in seen} <= set(CU_SEQLENS.tolist())
    assert [part.start for part in seen[1:]] == [part.stop for part in seen[:-1]]
    assert sum(part.stop - part.start for part in seen) == N


def test_the_head_gradient_is_added_to_what_is_there() -> None:
    """So that micro-batches share one buffer."""
    batch = Batch.random()
    _, once_VH = batch.one_pass(lambda part, logp_C, _: logp_C.sum())
    twice_VH = once_VH.clone()
    one_pass(
        batch.hidden_NH,
        batch.weight_VH,
        batch.target_N,
        TEMPERATURE,
        lambda part, logp_C, _: logp_C.sum(),
        weight_grad_VH=twice_VH,
    )
    torch.testing.assert_close(twice_VH, 2 * once_VH)


def test_a_frozen_head_gives_the_same_gradient_of_the_hidden_states() -> None:
    batch = Batch.random()
    trained, _ = batch.one_pass(lambda part, logp_C, _: logp_C.sum())
    frozen = one_pass(
        batch.hidden_NH,
        batch.weight_VH,
        batch.target_N,
        TEMPERATURE,
        lambda part, logp_C, _: logp_C.sum(),
        weight_grad_VH=None,
    )
    assert torch.equal(frozen.grad_hidden_NH, trained.grad_hidden_NH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_not_hidden(dtype: torch.dtype) -> None:
    """A NaN or an infinity among logits, and a NaN coefficient, make what depends on them NaN, and nothing else."""
    batch = Batch.random(dtype)
    batch.hidden_NH[2] = torch.nan
    batch.hidden_NH[4] = torch.inf
    coefficient_N = torch.ones(N)
    coefficient_N[7] = torch.nan
    passed, weight_grad_VH = batch.one_pass(lambda part, logp_C, _: (coefficient_N[part] * logp_C).sum())
    assert passed.logp_N.isnan().nonzero()[:, 0].tolist() == [2, 4]
    assert passed.entropy_N.isnan().nonzero()[:, 0].tolist() == [2, 4]
    assert passed.grad_hidden_NH.isnan().any(1).nonzero()[:, 0].tolist() == [2, 4, 7]
    assert weight_grad_VH.isnan().all()
    assert passed.loss.isnan()


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_impossible_tokens_give_no_nan(entropy_gradient: bool) -> None:
    """A logit of -inf has probability 0: it adds nothing to the entropy and has no gradient."""
    logits_1V = torch.randn(1, V, generator=torch.Generator().manual_seed(5))
    logits_1V[0, 10:40] = -1e38
    passed = one_pass(
        logits_1V,
        torch.eye(V) * 1e3,  # -1e41: -inf
        torch.tensor([3]),
        1e3,
        lambda part, logp_C, entropy_C: logp_C.sum() + entropy_C.sum(),
        weight_grad_VH=None,
        entropy_gradient=entropy_gradient,
    )
    possible = torch.distributions.Categorical(logits=torch.cat([logits_1V[:, :10], logits_1V[:, 40:]], 1))
    torch.testing.assert_close(passed.entropy_N, possible.entropy())
    torch.testing.assert_close(passed.logp_N, possible.log_prob(torch.tensor([3])))
    assert passed.grad_hidden_NH.isfinite().all()
    assert not passed.grad_hidden_NH[:, 10:40].any()


def test_a_nearly_certain_token_keeps_its_digits() -> None:
    """1 - p of 2e-11 is below what float32 has beside 1; log-prob and gradient have it all the same."""
    logits_1V = torch.zeros(1, V)
    logits_1V[0, 3] = 29.0
    passed = one_pass(
        logits_1V, torch.eye(V), torch.tensor([3]), 1.0, lambda part, logp_C, _: logp_C.sum(), weight_grad_VH=None
    )
    rest = (V - 1) * torch.tensor(-29.0).double().exp()
    torch.testing.assert_close(passed.logp_N.double()[0], -rest, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(passed.grad_hidden_NH[0, 3].double(), rest, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    batch = Batch.random()
    weight_grad_VH = torch.zeros(V, H)
    passed = one_pass(
        batch.hidden_NH[:tokens],
        batch.weight_VH,
        batch.target_N[:tokens],
        TEMPERATURE,
        lambda part, logp_C, _: logp_C.sum(),
        weight_grad_VH=weight_grad_VH,
    )
    assert passed.logp_N.shape == (tokens,)
    assert bool(weight_grad_VH.any()) == (tokens > 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_NH": torch.zeros(N, H + 1)}, "the head"),
        ({"hidden_NH": torch.zeros(N, H, dtype=torch.bfloat16)}, "convert one"),
        ({"target_N": torch.zeros(N + 1, dtype=torch.long)}, "targets of shape"),
        ({"weight_grad_VH": torch.zeros(V, H, dtype=torch.bfloat16)}, "float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    batch = Batch.random()
    arguments: dict[str, Any] = {
        "hidden_NH": batch.hidden_NH,
        "weight_VH": batch.weight_VH,
        "target_N": batch.target_N,
        "weight_grad_VH": torch.zeros(V, H),
    }
    with pytest.raises(InputError, match=message):
        one_pass(**arguments | change, temperature=1.0, loss_of=lambda part, logp_C, _: logp_C.sum())
