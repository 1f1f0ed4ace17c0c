"""Statistics of a rollout correction: how far engine and trainer disagree, and what the correction did about it.

Shapes: N tokens that count (packed, see layout.py), K sums. Symbols: k = π_old / π_sampler of a token.

All of k is measured before anything was truncated or dropped. (TRL's `sampling/importance_sampling_ratio/*` are taken
afterwards, https://github.com/huggingface/trl/issues/5231: they look best where the mismatch is worst.) As in stats.py,
sums and counts that add up exactly, divided once at the end; and only tokens with a signal, A != 0, are measured, since
the others need no log-probs at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinghai.objective.correction import Correction, CorrectionInputs, k3_of_sampler
from dinghai.objective.stats import on_grid

SUMS = (
    "tokens",
    "sequences",  # with at least one such token
    "dropped_tokens",
    "dropped_sequences",  # all their tokens with a signal are dropped
    "truncated_tokens",
    "nonfinite_tokens",  # log k is NaN or infinite
    "ratio_excess",  # Σ (k - 1): small addends keep their digits, and Σ k is tokens + this
    "ratio_excess_squared",  # Σ (k - 1)²
    "kl_sampler_old_k1",
    "kl_sampler_old_k3",
)


@dataclass(frozen=True)
class CorrectionStats:
    """Sums over the tokens with a signal. To merge ranks, all-reduce `sums` with SUM and `maxima` with MAX."""

    sums: Tensor  # [K] float64 on the loss's device, named by SUMS
    maxima: Tensor  # [1] float64: the largest |log k| of a token

    def __add__(self, other: CorrectionStats) -> CorrectionStats:
        """The statistics of both batches together."""
        return CorrectionStats(self.sums + other.sums, torch.maximum(self.maxima, other.maxima))

    def __radd__(self, other: object) -> CorrectionStats:
        """So that the built-in `sum` works, which begins with 0."""
        return self if other == 0 else NotImplemented

    def metrics(self) -> dict[str, float]:
        """Divided sums, by name. One transfer from the device. All are of tokens that count and have A != 0.

        What the correction did:
            dropped_fraction            tokens dropped
            dropped_sequences_fraction  sequences of which every such token is dropped
            truncated_fraction          tokens of which the factor is a cap in place of the ratio
        What it met, from each token's own k, untruncated, dropped tokens included:
            nonfinite_tokens            how many have a log k that is NaN or infinite: they show in all that follows
            ratio_mean                  of k: 1 in expectation, if the engine samples from what it reports
            ess_fraction                effective sample size (Σk)² / (n Σk²) of single tokens; of whole answers it is
                                        far lower
            kl_sampler_old_k1, _k3      KL(π_sampler || π_old) in nats a token: unbiased for tokens drawn from
                                        π_sampler; k1 may be negative
            log_ratio_abs_max           largest |log k| of a token

        Without any token only the count is given.
        """
        *values, log_ratio_abs_max = torch.cat([self.sums, self.maxima]).tolist()
        s = dict(zip(SUMS, values, strict=True))
        n = s["tokens"]
        if n == 0:
            return {"tokens": 0.0}
        ratio_sum = n + s["ratio_excess"]
        square_sum = n + 2 * s["ratio_excess"] + s["ratio_excess_squared"]
        return {
            "tokens": n,
            "dropped_fraction": s["dropped_tokens"] / n,
            "dropped_sequences_fraction": s["dropped_sequences"] / s["sequences"],
            "truncated_fraction": s["truncated_tokens"] / n,
            "nonfinite_tokens": s["nonfinite_tokens"],
            "ratio_mean": ratio_sum / n,
            "ess_fraction": ratio_sum * ratio_sum / (n * square_sum) if square_sum != 0 else 0.0,
            "kl_sampler_old_k1": s["kl_sampler_old_k1"] / n,
            "kl_sampler_old_k3": s["kl_sampler_old_k3"] / n,
            "log_ratio_abs_max": log_ratio_abs_max,
        }


def collect_correction(x: CorrectionInputs, correction: Correction) -> CorrectionStats:
    """The sums of one batch, from what the correction saw and what it decided."""
    layout, signal_N = x.layout, x.advantage != 0
    log_k_N = x.log_k.masked_fill(~signal_N, 0.0)
    excess_N = torch.expm1(log_k_N)
    signals_B = layout.sum(signal_N.double())
    kept_B = layout.sum((signal_N & ~correction.dropped).double())
    dropped_N = correction.dropped & signal_N
    truncated_N = torch.zeros_like(dropped_N) if correction.truncated is None else correction.truncated
    per_token_AN = torch.stack(
        [
            signal_N.double(),
            dropped_N.double(),
            (truncated_N & signal_N & ~dropped_N).double(),
            (~log_k_N.isfinite()).double(),
            excess_N,
            excess_N.square(),
            -log_k_N,
            k3_of_sampler(log_k_N),
        ]
    )
    tokens, dropped, *others = on_grid(per_token_AN).sum(dim=1)
    dropped_sequences = ((signals_B > 0) & (kept_B == 0)).sum()
    sums = torch.stack([tokens, (signals_B > 0).sum().double(), dropped, dropped_sequences.double(), *others])
    maximum = torch.cat([log_k_N.new_zeros(1), log_k_N.abs()]).amax(dim=0, keepdim=True)
    return CorrectionStats(sums, maximum)
