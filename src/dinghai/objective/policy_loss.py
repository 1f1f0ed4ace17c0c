"""The policy loss: a rule, a ratio, a reduction and a KL term, put together.

Shapes: every tensor has one value a token, padded [B, T] or packed [N] with cu_seqlens; advantage also [B].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dinghai.errors import InputError
from dinghai.objective import rules  # noqa: F401  (registers the built-in rules)
from dinghai.objective.decision import Decision, Region, effect_of
from dinghai.objective.kl import get_estimator
from dinghai.objective.layout import Layout
from dinghai.objective.ratio import LOG_RATIOS, masked, token_log_ratio
from dinghai.objective.reduce import Normalizer, check_reduction, reduce_tokens, token_factor
from dinghai.objective.registry import Rule, Tokens, check_parameters, get_rule
from dinghai.objective.stats import Stats, clip_stats, on_grid


@dataclass(frozen=True)
class PolicyLossOutput:
    """loss: scalar, to be minimised, with gradient. decision: what happened to each token. stats: additive sums."""

    loss: Tensor
    decision: Decision
    stats: Stats


class PolicyLoss:
    """loss = -sum_t f_t (J_t - beta KL_t), with f_t the reduction's factor of the token.

    rule:       "ppo" or "grpo", or another name in the registry
    reduction:  "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"
    ratio:      "token": r_t of each token. "sequence": the geometric mean s of its sequence's, for all its tokens; with
                one advantage a sequence and the reduction "seq-mean-token-mean" this is GSPO (2507.18071 eq. 5)
    kl, beta:   estimator of KL(new || ref) ("k1", "k2", "k3"; see `kl.py` for whose gradient each is) and its factor
    max_length: the constant of "seq-mean-token-sum-norm"
    parameters: the rule's own, e.g. eps_low, eps_high, dual_clip

    The loss has the surrogate's value, and a gradient built from the rule's closed-form weight: the record is the gradient,
    so no metric can disagree with it. (The tests prove that the weight is the surrogate's derivative.)
    """

    def __init__(
        self,
        rule: str = "grpo",
        *,
        reduction: str = "token-mean",
        ratio: Literal["token", "sequence"] = "token",
        kl: str | None = None,
        beta: float = 0.0,
        max_length: int | None = None,
        **parameters: float | None,
    ) -> None:
        if ratio not in LOG_RATIOS:
            raise InputError(f"ratio must be 'token' or 'sequence', got {ratio!r}")
        if beta < 0 or (beta > 0 and kl is None):
            raise InputError(f"beta = {beta:g} must be 0, or positive together with kl='k1', 'k2' or 'k3'")
        check_reduction(reduction, max_length)
        self.rule: Rule = get_rule(rule)
        self.parameters = check_parameters(self.rule, parameters)
        self.reduction, self.max_length, self.ratio = reduction, max_length, ratio
        self.kl_name, self.kl, self.beta = kl, get_estimator(kl) if kl else None, beta

    def __call__(
        self,
        *,
        logp_new: Tensor,
        logp_old: Tensor,
        advantage: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        logp_ref: Tensor | None = None,
        normalizer: Normalizer | None = None,
    ) -> PolicyLossOutput:
        """The loss of a batch, or of a micro-batch of a step that `normalizer` counts.

        logp_new:   log pi_new of the chosen tokens, nats, with gradient
        logp_old:   log pi_old: of the same weights before the first update on the batch
        advantage:  one value a sequence [B], or one a token
        mask:       bool, True where a token counts; masked slots may hold anything, NaN too. Default: all
        cu_seqlens: [B + 1], where each sequence begins and ends in packed tensors
        logp_ref:   log pi_ref, needed for and only for a KL term
        normalizer: tokens and sequences of the whole optimiser step; default: of this batch
        """
        if (logp_ref is None) != (self.kl is None):
            raise InputError("logp_ref and kl go together: pass both or neither")
        if logp_old.shape != logp_new.shape:
            raise InputError(f"logp_old has shape {tuple(logp_old.shape)}, logp_new {tuple(logp_new.shape)}")
        layout = Layout.of(logp_new, mask, cu_seqlens)
        new, old = masked(logp_new, layout), masked(logp_old.detach(), layout)
        A = masked(layout.per_token(advantage.detach(), "advantage"), layout).to(new.dtype)

        J, decision = self.decide(new.detach(), old, A, layout)
        objective = _with_gradient(J, decision.weight, new)
        stats = clip_stats(decision, new.detach(), old, token_factor(self.reduction, layout, new.dtype))
        if self.kl is not None and logp_ref is not None:
            x = masked(logp_ref.detach(), layout) - new.detach()
            kl = _with_gradient(self.kl.value(x), self.kl.coefficient(x), new)
            objective = objective - self.beta * kl
            stats += Stats({f"kl_ref_{self.kl_name}": on_grid(torch.where(layout.mask, kl.detach(), 0)).sum()})
        loss = -reduce_tokens(objective, layout, self.reduction, normalizer, self.max_length)
        return PolicyLossOutput(loss, decision, stats)

    def decide(self, logp_new: Tensor, logp_old: Tensor, A: Tensor, layout: Layout) -> tuple[Tensor, Decision]:
        """J and the decision of each token, from tensors that are 0 where masked."""
        log_ratio = LOG_RATIOS[self.ratio](token_log_ratio(logp_new, logp_old), layout)
        log_ratio = torch.where(layout.mask, log_ratio, 0)
        r = log_ratio.exp()
        tokens = Tokens(log_ratio, r, A, logp_new, logp_old, layout)
        signal = layout.mask & (A != 0)
        # An overflowed ratio times an advantage of 0 would be NaN; such a token has no gradient whatever the ratio.
        J, w, w0 = (
            torch.where(signal, x, 0)
            for x in (self.rule.surrogate(tokens, self.parameters), self.rule.weight(tokens, self.parameters), r * A)
        )
        region = self.rule.region(tokens, self.parameters)
        region[layout.mask & (A == 0)] = Region.NO_SIGNAL
        region[~layout.mask] = Region.MASKED
        in_band = self.rule.in_band(tokens, self.parameters)
        return J, Decision(log_ratio, r, A, w, w0, region, effect_of(w, w0, signal), layout.mask, in_band)


def _with_gradient(value: Tensor, coefficient: Tensor, logp: Tensor) -> Tensor:
    """`value`, with the gradient coefficient * grad logp."""
    return value + coefficient * (logp - logp.detach())
