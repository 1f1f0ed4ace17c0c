"""The policy loss: a rule, a ratio, a reduction, and perhaps a rollout correction and a KL penalty, composed.

Shapes: B sequences, T tokens of a padded row, N tokens: packed by the caller, or what counts of the padded ones.

    J_t    = the rule's surrogate of r_t and A_t, with the gradient w_t · ∇log π_new
    loss   = - reduce(k_t · J_t - β · KL_t)                                  minimised

The weight w is the rule's closed form, recorded in the `Decision` and attached to J as its gradient. So the record is
the gradient, by construction, and the tests prove that it is the gradient of J. k is the rollout correction's factor.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import dinghai.objective.rules  # noqa: F401  (registers the rules)
from dinghai.errors import InputError
from dinghai.objective.correction import Combination, CorrectionInputs, NamedCorrection, RolloutCorrection
from dinghai.objective.correction_stats import CorrectionStats, collect_correction
from dinghai.objective.decision import Decision, Region, effects
from dinghai.objective.inputs import TokenInputs
from dinghai.objective.kl import KL_ESTIMATORS, KLCorrection, KLEstimatorName, check_kl, kl_in_loss
from dinghai.objective.layout import Layout
from dinghai.objective.ratio import RatioLevel
from dinghai.objective.reduce import Normalizer, Reduction, ReductionName, TRLLossType, attach_gradient
from dinghai.objective.registry import find_rule, guard_rails, nearest
from dinghai.objective.stats import Stats, collect

Context = Mapping[str, Tensor]


@dataclass(frozen=True)
class PolicyLossOutput:
    """What a call of `PolicyLoss` returns."""

    loss: Tensor  # scalar, minimised; carries the gradient to logp_new
    decision: Decision  # the record of each token, in the shape of the caller's tensors, without gradient
    stats: Stats  # sums; add those of all micro-batches, then .metrics()
    factor: Tensor  # f_t of the reduction, float64, in the caller's shape, 0 where masked: loss = -Σ f_t·J_t / D
    correction_stats: CorrectionStats | None = None  # likewise, of the rollout correction, if there is one

    @classmethod
    def joined(cls, parts: Sequence[PolicyLossOutput]) -> PolicyLossOutput:
        """That of packed tokens from those of their parts, in order; every part was divided by the whole's normaliser.

        Decisions, factors and statistics are those of the whole to the bit, the loss up to rounding.
        """
        if len(parts) == 1:
            return parts[0]
        corrections = [part.correction_stats for part in parts if part.correction_stats is not None]
        return cls(
            loss=torch.stack([part.loss for part in parts]).sum(),
            decision=Decision.joined([part.decision for part in parts]),
            stats=sum((part.stats for part in parts[1:]), parts[0].stats),
            factor=torch.cat([part.factor for part in parts]),
            correction_stats=sum(corrections[1:], corrections[0]) if corrections else None,
        )


class PolicyLoss:
    """The loss of one rule of the registry.

    Args:
        rule: name in the registry, e.g. "ppo", "grpo" or "cispo"; `RULES` has them all.
        ratio: the importance ratio of each "token" or of the "sequence", see ratio.py; by default the rule's own.
        reduction: how tokens become one number, see `Reduction`; by default the one of the rule's paper.
        max_length: constant length in tokens, for the reduction "seq-mean-token-sum-norm" only.
        kl: estimator of the divergence from the reference, see kl.py; calls then need logp_ref.
        kl_correction: "none" or a correction of the estimator's gradient, "on-policy" or "ratio".
        beta: coefficient of the KL penalty in the loss; 0 only measures it. A call may give another.
        correction: a rollout correction, e.g. `TruncatedIS()`; calls then need logp_sampler.
        updates_per_batch: optimiser steps on each batch of rollouts, if known: with one, warns that no bound can act.
        parameters: those of the rule, e.g. eps_low, eps_high, dual_clip; see `find_rule(name).describe()`.

    Warns of values that are allowed but hardly meant, e.g. GRPO's ε of 0.2 on a sequence's ratio: see `guard_rails`.

    Raises:
        InputError: a name is unknown, or a value out of range.
    """

    def __init__(
        self,
        rule: str,
        *,
        ratio: RatioLevel | None = None,
        reduction: ReductionName | TRLLossType | None = None,
        max_length: int | None = None,
        kl: KLEstimatorName | None = None,
        kl_correction: KLCorrection = "none",
        beta: float = 0.0,
        correction: RolloutCorrection | None = None,
        updates_per_batch: int | None = None,
        **parameters: float | None,
    ) -> None:
        self.rule = find_rule(rule)
        self.parameters = self.rule.parse(parameters)
        self.reduction = Reduction(reduction or self.rule.reduction, max_length)
        self.ratio: RatioLevel = ratio or self.rule.ratio_levels[0]
        self.kl, self.kl_correction, self.beta, self.correction = kl, kl_correction, beta, correction
        if self.ratio not in self.rule.ratio_levels:
            raise InputError(f"rule {rule!r} has no ratio {ratio!r}{nearest(self.ratio, list(self.rule.ratio_levels))}")
        if kl is not None:
            check_kl(kl, kl_correction)
        _check_beta(beta)
        if beta > 0 and kl is None:
            raise InputError(f"beta is {beta:g}, but no KL estimator is chosen: set kl to k1, k2 or k3 (GRPO: k3)")
        sentences = guard_rails(self.rule, self.parameters, self.ratio, updates_per_batch)
        if isinstance(correction, NamedCorrection | Combination):
            sentences += correction.warnings()
        for sentence in sentences:
            warnings.warn(sentence, stacklevel=2)

    def __call__(
        self,
        *,
        logp_new: Tensor,
        logp_old: Tensor,
        advantage: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        logp_ref: Tensor | None = None,
        logp_sampler: Tensor | None = None,
        normalizer: Normalizer | None = None,
        context: Context | None = None,
        beta: float | None = None,
        layout: Layout | None = None,
    ) -> PolicyLossOutput:
        """The loss of one batch, of one micro-batch of whole sequences, or of a part of packed sequences.

        Args:
            logp_new: log π_new(token) in nats, with grad; padded [B, T] or packed [N].
            logp_old: log π_old(token), of the weights before the first update on the batch. Same shape.
            advantage: one per sequence [B], or one per token.
            mask: boolean, True where a token is trained on. Needed when padded, optional when packed.
            cu_seqlens: [B+1], where packed sequences begin and end.
            logp_ref: log π_ref(token); given if and only if `kl` was.
            logp_sampler: log-prob that the rollout engine reported; given if and only if `correction` was.
            normalizer: tokens and sequences of the whole optimiser step, so that the losses of its micro-batches add up
                to the loss of the whole. By default those of this batch.
            context: what `PolicyLoss.context` gave for the whole minibatch, so that rules that look at all of it decide
                the same in every micro-batch. By default that of this batch.
            beta: coefficient of the KL penalty for this call, e.g. from a controller in kl_control.py.
            layout: in place of mask and cu_seqlens, where the tokens lie. `Layout.part` makes that of a part of packed
                sequences: if the objective is `tokenwise` it may cut them, and loss, decisions and statistics of the
                parts add up to those of the whole. Needs the normalizer of the whole, and its context.

        Half precision is computed in float32; float64 stays. Masked positions may hold anything.

        Raises:
            InputError: shapes or dtypes do not fit together.
        """
        _check_floats(
            logp_new=logp_new, logp_old=logp_old, advantage=advantage, logp_ref=logp_ref, logp_sampler=logp_sampler
        )
        _check_shapes(logp_new, logp_old=logp_old, logp_ref=logp_ref, logp_sampler=logp_sampler)
        if (logp_ref is None) != (self.kl is None):
            raise InputError("logp_ref is what the KL is measured from: give it if and only if `kl` is set")
        if (logp_sampler is None) != (self.correction is None):
            raise InputError(
                "logp_sampler is what the rollout correction measures from: give it if and only if `correction` is set"
            )
        beta = self.beta if beta is None else _check_beta(beta)
        if layout is None:
            layout = Layout.of(logp_new, mask, cu_seqlens)
        else:
            self._check_part(layout, logp_new, mask, cu_seqlens, context)
        logp_new_N = _in_compute_dtype(layout.gather(logp_new))
        x = self._inputs(logp_new_N.detach(), logp_old, advantage, layout)
        if self.rule.context is not None:
            x = replace(x, context=self.rule.context(x, self.parameters) if context is None else context)
        surrogate_N, decision = self._decide(x)
        correction_stats = None
        if self.correction is not None and logp_sampler is not None:
            surrogate_N, decision, correction_stats = self._correct(x, logp_sampler, surrogate_N, decision)
        loss_N = -attach_gradient(surrogate_N, decision.weight, logp_new_N)
        kl_N = None
        if self.kl is not None and logp_ref is not None:
            log_ratio_N = x.logp_new - layout.gather(logp_ref.detach()).to(x.logp_new.dtype)
            kl_N = KL_ESTIMATORS[self.kl].value(log_ratio_N)
            if beta > 0:
                penalty_N, kl_weight_N = kl_in_loss(self.kl, log_ratio_N, x.logp_new - x.logp_old, self.kl_correction)
                loss_N = loss_N + beta * attach_gradient(penalty_N, kl_weight_N, logp_new_N)
                decision = replace(decision, kl_weight=-beta * kl_weight_N)
        factor_N = self.reduction.factor(layout)
        return PolicyLossOutput(
            loss=self.reduction(loss_N, layout, normalizer),
            decision=decision.unpacked(layout),
            stats=collect(x, decision, surrogate_N, factor_N, kl_N, self.kl),
            factor=layout.scatter(factor_N),
            correction_stats=correction_stats,
        )

    @torch.no_grad()
    def context(
        self,
        *,
        logp_new: Tensor,
        logp_old: Tensor,
        advantage: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Context | None:
        """What the rule has to know of a whole minibatch before its micro-batches; None for a rule that needs nothing.

        Arguments and errors as those of a call; no gradient flows.
        """
        if self.rule.context is None:
            return None
        layout = Layout.of(logp_new, mask, cu_seqlens)
        logp_new_N = _in_compute_dtype(layout.gather(logp_new))
        return self.rule.context(self._inputs(logp_new_N, logp_old, advantage, layout), self.parameters)

    @property
    def tokenwise(self) -> bool:
        """Whether each decision is about a token alone, given the context, so that sequences may be cut into parts."""
        return self.ratio == "token" and not self.rule.whole_sequences and self.correction is None

    def is_silent_without_advantage(self) -> bool:
        """Whether a token with A = 0 has no gradient from the rule and adds nothing to J, whatever its log-probs.

        Then a sequence without any advantage need not be scored, unless a KL penalty or an entropy bonus acts on it.
        Found by asking the rule. One that looks at the whole minibatch is taken to look at those tokens as well.
        """
        if self.rule.context is not None:
            return False
        log_ratio_N = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64).repeat(3)
        logp_old_N = torch.tensor([-20.0, -9.0, -8.01], dtype=torch.float64).repeat_interleave(161)
        for length in (1, 7):  # alone, and in company
            layout = Layout.packed(log_ratio_N.shape, torch.arange(0, log_ratio_N.numel() + 1, length))
            x = TokenInputs.of(logp_old_N + log_ratio_N, logp_old_N, torch.zeros_like(logp_old_N), layout, self.ratio)
            weight_N, surrogate_N = (f(x, self.parameters) for f in (self.rule.weight, self.rule.surrogate))
            if bool((weight_N != 0).any() | (surrogate_N != 0).any()):
                return False
        return True

    def unscored(self, *, mask: Tensor, cu_seqlens: Tensor) -> PolicyLossOutput:
        """The record of packed sequences without any advantage, made without log-probs: they have no part in the loss.

        Decisions of weight 0 in the region NO_SIGNAL, at a ratio of 1 that nobody measured; factors; and statistics in
        which the tokens are counted, so that sums over a minibatch are those with scores. For an objective that
        `is_silent_without_advantage`.

        Args:
            mask: boolean [N], True for tokens that count. cu_seqlens: [B+1].
        """
        nothing_N = torch.zeros(mask.shape, device=mask.device)
        return self(
            logp_new=nothing_N,
            logp_old=nothing_N,
            advantage=nothing_N,
            mask=mask,
            cu_seqlens=cu_seqlens,
            logp_ref=None if self.kl is None else nothing_N,
            logp_sampler=None if self.correction is None else nothing_N,
        )

    def _check_part(
        self,
        layout: Layout,
        logp_new: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        context: Context | None,
    ) -> None:
        if mask is not None or cu_seqlens is not None:
            raise InputError("a layout says where the tokens lie: leave out mask and cu_seqlens")
        if layout.shape != logp_new.shape:
            raise InputError(f"the layout is of shape {list(layout.shape)}, but logp_new has {list(logp_new.shape)}")
        if layout.whole_length_B is None:
            return
        if not self.tokenwise:
            raise InputError(
                f"{self.rule.name!r} here looks at whole sequences, but the layout cuts one: cut between them"
            )
        if self.rule.context is not None and context is None:
            raise InputError(
                f"rule {self.rule.name!r} looks at the whole minibatch: give the context of it with a part"
            )

    def _inputs(self, logp_new_N: Tensor, logp_old: Tensor, advantage: Tensor, layout: Layout) -> TokenInputs:
        """What the rule looks at. Nothing here carries a gradient."""
        dtype = logp_new_N.dtype
        logp_old_N = layout.gather(logp_old.detach()).to(dtype)
        advantage_N = _advantage_of_tokens(advantage.detach(), layout).to(dtype)
        return TokenInputs.of(logp_new_N, logp_old_N, advantage_N, layout, self.ratio)

    def _decide(self, x: TokenInputs) -> tuple[Tensor, Decision]:
        """The rule's surrogate, and the record of the tokens that count: packed [N]."""
        weight_N = self.rule.weight(x, self.parameters)
        unclipped_N = x.importance_weighted
        decision = Decision(
            log_ratio=x.log_ratio,
            ratio=x.ratio,
            advantage=x.advantage,
            weight=weight_N,
            weight_unclipped=unclipped_N,
            region=self.rule.region(x, self.parameters),
            effect=effects(weight_N, unclipped_N, x.advantage),
            mask=torch.ones_like(x.advantage, dtype=torch.bool),
        )
        return self.rule.surrogate(x, self.parameters), decision

    def _correct(
        self, x: TokenInputs, logp_sampler: Tensor, surrogate_N: Tensor, decision: Decision
    ) -> tuple[Tensor, Decision, CorrectionStats]:
        """Surrogate and record after the rollout correction, whatever the rule: packed [N]."""
        assert self.correction is not None
        logp_sampler_N = x.layout.gather(logp_sampler.detach()).to(x.logp_new.dtype)
        inputs = CorrectionInputs(logp_sampler_N, x.logp_old, x.logp_new, x.advantage, x.layout)
        correction = self.correction(inputs)
        dropped_N, factor_N = correction.dropped, correction.factor
        # A dropped token is left out, not multiplied by 0: its ratio may have overflowed.
        weight_N = (factor_N * decision.weight).masked_fill(dropped_N, 0.0)
        unclipped_N = torch.where(dropped_N, decision.weight_unclipped, factor_N * decision.weight_unclipped)
        corrected = replace(
            decision,
            weight=weight_N,
            weight_unclipped=unclipped_N,
            region=decision.region.masked_fill(dropped_N & (x.advantage != 0), Region.DROPPED),
            effect=effects(weight_N, unclipped_N, x.advantage),
            correction=factor_N,
        )
        surrogate_N = (factor_N * surrogate_N).masked_fill(dropped_N, 0.0)
        return surrogate_N, corrected, collect_correction(inputs, correction)


def _in_compute_dtype(x: Tensor) -> Tensor:
    """float64 stays; all else is computed in float32, since a ratio near 1 has no digits to spare in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def _advantage_of_tokens(advantage: Tensor, layout: Layout) -> Tensor:
    """[B] or the tokens' own shape -> [N]."""
    of_tokens, of_sequences = advantage.shape == layout.shape, advantage.shape == (layout.rows,)
    if of_tokens and of_sequences and not _is_one_token_each(layout):
        raise InputError(
            f"the batch has as many tokens as sequences ({layout.rows}), so an advantage of shape [{layout.rows}] "
            "could be one per token or one per sequence: leave out the empty sequences, or pad the batch"
        )
    if of_tokens:
        return layout.gather(advantage)
    if of_sequences:
        return layout.spread(advantage)
    raise InputError(
        f"advantage must be one per sequence [{layout.rows}] or one per token {list(layout.shape)}; "
        f"got shape {list(advantage.shape)}"
    )


def _is_one_token_each(layout: Layout) -> bool:
    place_N = torch.arange(layout.rows, device=layout.length_B.device)
    return torch.equal(layout.gather(place_N), layout.row_N)


def _check_beta(beta: float) -> float:
    if not 0 <= beta < float("inf"):
        raise InputError(f"beta must be 0 or more; got {beta!r}")
    return beta


def _check_floats(**tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and not (isinstance(x, Tensor) and x.is_floating_point()):
            raise InputError(f"{name} must be a floating-point tensor; got {getattr(x, 'dtype', type(x).__name__)}")


def _check_shapes(logp_new: Tensor, **tensors: Tensor | None) -> None:
    for name, x in tensors.items():
        if x is not None and x.shape != logp_new.shape:
            raise InputError(f"{name} has shape {list(x.shape)}, but logp_new has {list(logp_new.shape)}")
