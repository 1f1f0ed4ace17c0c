"""Single tokens and one small batch, in float64: the formulas written out by hand beside what the rules decide.

By hand means torch.min, torch.clamp and autograd on the formula of a paper; nothing of a rule's closed form is in it.

Shapes: G completions of one prompt, L their longest length in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.objective import Effect, PolicyLoss, Region

EPS = 0.2


@dataclass(frozen=True)
class Shown:
    """One token: what the formula by hand gives, and what the rule decided."""

    ratio: float
    advantage: float
    value: float  # J by hand
    gradient: float  # ∂J/∂log π_new by autograd on J
    weight: float  # w, as the rule decided
    unclipped: float  # w0 = r·A
    region: str
    effect: str

    @property
    def agrees(self) -> bool:
        """Whether the rule's weight is the gradient that autograd finds."""
        return abs(self.weight - self.gradient) <= 1e-12 * (1 + abs(self.gradient))


def by_hand(ratio: Tensor, advantage: Tensor, eps_low: float, eps_high: float, dual_clip: float | None) -> Tensor:
    """J = min(r·A, clip(r, 1-ε_low, 1+ε_high)·A), and max(J, c·A) where A < 0 (PPO, arXiv 1707.06347, equation 7;
    dual clip, arXiv 1912.09729, equation 5)."""
    value = torch.min(ratio * advantage, torch.clamp(ratio, 1 - eps_low, 1 + eps_high) * advantage)
    if dual_clip is None:
        return value
    return torch.where(advantage < 0, torch.max(value, dual_clip * advantage), value)


def show(
    ratio: float,
    advantage: float,
    p_old: float = 0.01,
    eps_low: float = EPS,
    eps_high: float = EPS,
    dual_clip: float | None = None,
) -> Shown:
    """One token under the clip: value and gradient by hand, and the decision of the rule `ppo`."""
    logp_old = torch.tensor([p_old], dtype=torch.float64).log()
    logp_new = (logp_old + torch.tensor([ratio], dtype=torch.float64).log()).requires_grad_()
    advantage_1 = torch.tensor([advantage], dtype=torch.float64)
    value = by_hand((logp_new - logp_old).exp(), advantage_1, eps_low, eps_high, dual_clip)
    (gradient,) = torch.autograd.grad(value.sum(), logp_new)
    loss = PolicyLoss("ppo", reduction="token-sum", eps_low=eps_low, eps_high=eps_high, dual_clip=dual_clip)
    decision = loss(
        logp_new=logp_new, logp_old=logp_old, advantage=advantage_1, cu_seqlens=torch.tensor([0, 1])
    ).decision
    return Shown(
        ratio=ratio,
        advantage=advantage,
        value=value.item() + 0.0,  # + 0.0: no -0 on a page
        gradient=gradient.item() + 0.0,
        weight=decision.weight.item() + 0.0,
        unclipped=decision.weight_unclipped.item() + 0.0,
        region=Region(int(decision.region)).name.lower(),
        effect=Effect(int(decision.effect)).name.lower(),
    )


@dataclass(frozen=True)
class LossByHand:
    """The loss of GRPO on one batch, by hand and as the rule `grpo` has it."""

    by_hand: float
    by_rule: float
    gradient_error: float  # largest |difference| of ∂loss/∂log π_new over the batch's tokens
    tokens: int

    @property
    def error(self) -> float:
        return max(abs(self.by_hand - self.by_rule), self.gradient_error)


def grpo_loss(seed: int = 0, beta: float = 0.04) -> LossByHand:
    """-1/G Σ_i 1/|o_i| Σ_t [min(r·A, clip(r, 1-ε, 1+ε)·A) - β·k3] on G = 6 completions of unequal length.

    Source: GRPO, arXiv 2402.03300, equations 3 and 4: k3 = π_ref/π - log(π_ref/π) - 1.
    """
    generator = torch.Generator().manual_seed(seed)
    length_G = torch.tensor([3, 7, 1, 12, 5, 9])
    shape = (len(length_G), int(length_G.max()))

    def drawn(spread: float) -> Tensor:
        return spread * torch.randn(shape, generator=generator, dtype=torch.float64)

    logp_old_GL = -3 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    logp_new_GL = (logp_old_GL + drawn(0.4)).requires_grad_()  # ratios on both sides of every bound
    logp_ref_GL = logp_old_GL + drawn(0.2)
    advantage_G = torch.randn(len(length_G), generator=generator, dtype=torch.float64)
    mask_GL = torch.arange(shape[1]) < length_G[:, None]

    ratio_GL = (logp_new_GL - logp_old_GL).exp()
    k3_GL = (logp_ref_GL - logp_new_GL).exp() - (logp_ref_GL - logp_new_GL) - 1
    term_GL = by_hand(ratio_GL, advantage_G[:, None], EPS, EPS, None) - beta * k3_GL
    loss = -((term_GL * mask_GL).sum(dim=1) / length_G).sum() / len(length_G)
    (gradient_GL,) = torch.autograd.grad(loss, logp_new_GL)

    policy_loss = PolicyLoss("grpo", reduction="seq-mean-token-mean", kl="k3", beta=beta, eps_low=EPS, eps_high=EPS)
    out = policy_loss(
        logp_new=logp_new_GL, logp_old=logp_old_GL, advantage=advantage_G, mask=mask_GL, logp_ref=logp_ref_GL
    )
    (rule_gradient_GL,) = torch.autograd.grad(out.loss, logp_new_GL)
    error = float((gradient_GL - rule_gradient_GL).abs().max())
    return LossByHand(loss.item(), out.loss.item(), error, int(mask_GL.sum()))


def ratios_are_per_token(seed: int = 0) -> tuple[float, float]:
    """Of a completion of eight tokens in which one log-prob moves: how far the ratio of another token moves at most,
    per token (`ppo`) and per sequence (`gspo`)."""
    generator = torch.Generator().manual_seed(seed)
    logp_old = -torch.rand(8, generator=generator, dtype=torch.float64) - 0.1
    moved = logp_old.clone()
    moved[0] += 0.5
    found = []
    for rule in ("ppo", "gspo"):
        out = PolicyLoss(rule)(
            logp_new=moved,
            logp_old=logp_old,
            advantage=torch.ones(1, dtype=torch.float64),
            cu_seqlens=torch.tensor([0, 8]),
        )
        found.append(float((out.decision.ratio[1:] - 1).abs().max()))
    return found[0], found[1]


def highest_ratio(p_old: float) -> float:
    """The largest ratio that a token of this probability can have: π_new is at most 1."""
    return 1 / p_old


def share_of_stopped() -> tuple[float, float]:
    """Of two tokens with A = -1, an unlikely one that is stopped and a likely one that is not: the fraction of tokens
    that is stopped, and of their gradient |w0|·(1-p)."""
    logp_old = torch.tensor([0.1, 0.9], dtype=torch.float64).log()
    logp_new = logp_old + torch.tensor([0.75, 1.0], dtype=torch.float64).log()
    advantage = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    metrics = PolicyLoss("ppo", eps_low=EPS, eps_high=EPS)(
        logp_new=logp_new, logp_old=logp_old, advantage=advantage, cu_seqlens=torch.tensor([0, 1, 2])
    ).stats.metrics()
    return metrics["stopped_fraction"], metrics["gradient_removed/total"]
