"""The policy heads that gpu.py times: Dinghai's, plain autograd, and others where they are installed.

Shapes: N tokens, H hidden size, V vocabulary, C rows of a chunk, B sequences, T tokens of each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
import torch.nn.functional as F
from torch import Tensor

from dinghai.objective import Layout, Normalizer, PolicyLoss
from dinghai.ops.head import one_pass

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 0.2
FAR = 1.0  # nats: a token moved so far up with A > 0 is past the clip


@dataclass(frozen=True)
class Case:
    """A minibatch at the head: inputs, and what the loss needs. Advantages are those of sequences."""

    hidden_NH: Tensor
    weight_VH: Tensor
    target_N: Tensor
    logp_old_N: Tensor
    advantage_N: Tensor
    length: int  # T

    @property
    def tokens(self) -> int:
        return self.hidden_NH.shape[0]

    def rows(self, here: slice) -> Case:
        cut = (x[here] for x in (self.target_N, self.logp_old_N, self.advantage_N))
        hidden_NH = self.hidden_NH[here]
        return Case(hidden_NH, self.weight_VH, *cut, min(self.length, hidden_NH.shape[0]))


def make_case(N: int, H: int, V: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    """Logits of standard deviation 2, targets drawn at random, old log-probs about as far off as after an update."""
    torch.manual_seed(0)
    length = min(512, N // 4)
    hidden_NH = torch.randn(N, H, device=DEVICE, dtype=dtype)
    weight_VH = torch.randn(V, H, device=DEVICE, dtype=dtype) * (2 / H**0.5)
    target_N = torch.randint(0, V, (N,), device=DEVICE)
    logp_N = torch.cat(
        [plain_logp(h, weight_VH, y) for h, y in zip(hidden_NH.split(256), target_N.split(256), strict=True)]
    )
    advantage_B = torch.randn(-(-N // length), device=DEVICE)
    logp_old_N = logp_N + 0.05 * torch.randn(N, device=DEVICE)
    return Case(hidden_NH, weight_VH, target_N, logp_old_N, advantage_B.repeat_interleave(length)[:N], length)


def plain_logp(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> Tensor:
    logp_NV = torch.log_softmax(F.linear(hidden_NH, weight_VH).float(), -1)
    return logp_NV.gather(1, target_N[:, None])[:, 0]


def grpo_of(case: Case) -> Callable[[slice, Tensor], Tensor]:
    """The GRPO loss of a part of the rows."""
    policy_loss = PolicyLoss("grpo", eps_low=EPS, eps_high=EPS, reduction="token-mean")
    bounds = [*range(0, case.tokens, case.length), case.tokens]
    layout = Layout.packed(case.target_N.shape, torch.tensor(bounds, device=DEVICE))
    counts = Normalizer(tokens=case.tokens, sequences=len(bounds) - 1)

    def loss_of(rows: slice, logp_C: Tensor) -> Tensor:
        out = policy_loss(
            logp_new=logp_C,
            logp_old=case.logp_old_N[rows],
            advantage=case.advantage_N[rows],
            normalizer=counts,
            layout=layout.part(rows),
        )
        return out.loss

    return loss_of


Run = Callable[[], tuple[Tensor, Tensor]]  # -> gradients of hidden states and head
Head = Callable[[Case], Run]


def dinghai_head(case: Case, coefficient_N: Tensor | None = None) -> Run:
    """With given coefficients, or with those of the rule."""
    total_VH = torch.zeros(case.weight_VH.shape, device=DEVICE)
    grpo = grpo_of(case)

    def loss_of(rows: slice, logp_C: Tensor, entropy_C: Tensor) -> Tensor:
        return grpo(rows, logp_C) if coefficient_N is None else -(coefficient_N[rows] * logp_C).sum()

    def run() -> tuple[Tensor, Tensor]:
        out = one_pass(case.hidden_NH, case.weight_VH, case.target_N, 1.0, loss_of, weight_grad_VH=total_VH)
        return out.grad_hidden_NH, total_VH

    return run


def autograd_head(logp_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Head:
    """A head that gives log-probs to autograd, with the same loss behind it."""

    def head(case: Case) -> Run:
        grpo = grpo_of(case)
        hidden_NH, weight_VH = (x.detach().requires_grad_() for x in (case.hidden_NH, case.weight_VH))

        def run() -> tuple[Tensor, Tensor]:
            loss = grpo(slice(0, case.tokens), logp_of(hidden_NH, weight_VH, case.target_N))
            grad_hidden_NH, grad_weight_VH = torch.autograd.grad(loss, (hidden_NH, weight_VH))
            return grad_hidden_NH, grad_weight_VH

        return run

    return head


def trl_head() -> Head:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    columns = 32768  # as TRL's trainers call it

    def logp_of(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> Tensor:
        return ChunkedLogProbFunction.apply(
            hidden_NH, weight_VH, None, target_N, 1.0, columns, None, 1.0, ("entropy",)
        )[0]

    return autograd_head(logp_of)


def liger_scaled_head() -> Head:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Fused

    def logp_of(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> Tensor:
        return -Fused.apply(hidden_NH, weight_VH, target_N, 1.0, -100, 1, True)[0]

    return autograd_head(logp_of)


def cce_head() -> Head:
    from cut_cross_entropy import linear_cross_entropy

    def logp_of(hidden_NH: Tensor, weight_VH: Tensor, target_N: Tensor) -> Tensor:
        return -linear_cross_entropy(hidden_NH, weight_VH, target_N, reduction="none").float()

    return autograd_head(logp_of)


def liger_grpo_head() -> Head:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    def head(case: Case) -> Run:
        loss = LigerFusedLinearGRPOLoss(
            beta=0.0, use_ref_model=False, compiled=False, epsilon_low=EPS, epsilon_high=EPS, loss_type="bnpo"
        )
        hidden_NH, weight_VH = (x.detach().requires_grad_() for x in (case.hidden_NH, case.weight_VH))
        of_sequences = [x.view(-1, case.length) for x in (case.target_N, case.logp_old_N)]
        advantage_B = case.advantage_N[:: case.length].contiguous()

        def run() -> tuple[Tensor, Tensor]:
            target_BT, logp_old_BT = of_sequences
            value, _ = loss(
                hidden_NH.view(*target_BT.shape, -1),
                weight_VH,
                target_BT,
                torch.ones_like(target_BT),
                advantage_B,
                old_per_token_logps=logp_old_BT,
            )
            grad_hidden_NH, grad_weight_VH = torch.autograd.grad(value, (hidden_NH, weight_VH))
            return grad_hidden_NH, grad_weight_VH

        return run

    return head


OTHERS: dict[str, Callable[[], Head]] = {
    "plain autograd, no entropy": lambda: autograd_head(plain_logp),
    "TRL, chunked log-probs and entropy": trl_head,
    "Liger, GRPO loss (not compiled)": liger_grpo_head,
    "Liger, scaled cross entropy and entropy": liger_scaled_head,
    "CCE, cross entropy, no entropy": cce_head,
}


def reference_gradients(case: Case) -> tuple[Tensor, Tensor]:
    exact = replace(case, hidden_NH=case.hidden_NH.float(), weight_VH=case.weight_VH.float())
    return autograd_head(plain_logp)(exact)()


def gradient_error(run: Run, right: tuple[Tensor, Tensor]) -> float:
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(run(), right, strict=True))


def half_clipped(case: Case) -> Case:
    """The second half of the rows has A > 0 and a ratio far past the clip."""
    old_N, advantage_N = case.logp_old_N.clone(), case.advantage_N.clone()
    past = slice(case.tokens // 2, None)
    old_N[past] -= FAR
    advantage_N[past] = advantage_N[past].abs() + 0.1
    return replace(case, logp_old_N=old_N, advantage_N=advantage_N)


def products(case: Case) -> Callable[[], None]:
    hidden_NH, weight_VH = case.hidden_NH, case.weight_VH
    logits_NV = torch.mm(hidden_NH, weight_VH.t())
    grad_hidden_NH, grad_weight_VH = torch.empty_like(hidden_NH), torch.empty_like(weight_VH)

    def run() -> None:
        torch.mm(hidden_NH, weight_VH.t(), out=logits_NV)
        torch.mm(logits_NV, weight_VH, out=grad_hidden_NH)
        torch.mm(logits_NV.t(), hidden_NH, out=grad_weight_VH)

    return run
