"""Statistics as sums: they add up exactly over micro-batches, minibatches, epochs and ranks, and are divided once.

Shapes: one value a token, [B, T] or packed [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dinghai.objective.decision import Decision, Effect, Region

# Each real-valued addend is rounded to a multiple of 2**-30 (1e-9). Sums of such numbers are exact in float64 while they
# stay below 2**23, so the result does not depend on the order or the split; above that it is float64's own rounding.
GRID = 2.0**30

CLIP_REGIONS = [r for r in Region if r not in (Region.MASKED, Region.NO_SIGNAL)]


def on_grid(x: Tensor) -> Tensor:
    """`x` in float64, rounded to the grid; NaN and infinity stay what they are."""
    return torch.round(x.double() * GRID) / GRID


@dataclass(frozen=True)
class Stats:
    """Sums (and maxima) by name, as float64 scalars on their device; `a + b` merges, `metrics()` divides.

    sums:    counts and grid-rounded sums
    largest: merged by maximum
    """

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    largest: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Stats) -> Stats:
        zero = torch.zeros((), dtype=torch.float64)
        names = [*self.sums, *(n for n in other.sums if n not in self.sums)]
        sums = {n: self.sums.get(n, zero) + other.sums.get(n, zero) for n in names}
        largest = dict(self.largest)
        for name, value in other.largest.items():
            largest[name] = torch.maximum(largest[name], value) if name in largest else value
        return Stats(sums, largest)

    def totals(self) -> dict[str, float]:
        """The sums and maxima as numbers, in one transfer from the device."""
        values = {**self.sums, **self.largest}
        if not values:
            return {}
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        """What the sums say. A metric whose denominator is zero is left out.

        stopped_fraction          tokens whose gradient the rule made exactly zero, of the tokens with signal (A != 0)
        band_fraction             tokens with the ratio outside the bounds, stopped or not, of the tokens with signal:
                                  the classic clip fraction, which ignores the sign of A
        region/R_fraction         tokens in region R, of the unmasked tokens
        effect/E_fraction         tokens with effect E, of the tokens with signal
        weight_removed/R          weight that the rule took from the tokens of R, of all the weight that no clip would
                                  have given: sum f (|w0| - |w|) / sum f |w0|, f the reduction's factor of the token
        weight_removed/total      over all regions
        gradient_removed/R        the same with each token counted by |w| (1 - p_new): the norm of its gradient at the
        gradient_removed/total    logits is |w| ||e_a - pi||, which lies within 1 and sqrt(2) times that
        kl_old_new_k1, _k3        estimates of KL(old || new) in nats a token, mean over the unmasked tokens
        ratio_mean                mean importance ratio over the unmasked tokens
        ess_fraction              effective sample size (sum r)^2 / (n sum r^2): 1 when all ratios agree
        log_ratio_abs_max         largest |log ratio|
        kl_ref_E                  mean over the unmasked tokens of the estimator E of KL(new || ref), where asked for
        """
        total = self.totals()
        result: dict[str, float] = {}

        def divide(name: str, above: str, below: str) -> None:
            if total.get(below, 0.0) != 0 and above in total:
                result[name] = total[above] / total[below]

        divide("stopped_fraction", "stopped", "signal")
        divide("band_fraction", "out_of_band", "signal")
        for region in Region:
            if region is not Region.MASKED:
                divide(f"region/{region.name.lower()}_fraction", f"region/{region.name.lower()}", "tokens")
        for effect in Effect:
            if effect is not Effect.NONE:
                divide(f"effect/{effect.name.lower()}_fraction", f"effect/{effect.name.lower()}", "signal")
        for kind in ("weight", "gradient"):
            for name in (*(r.name.lower() for r in CLIP_REGIONS), "total"):
                divide(f"{kind}_removed/{name}", f"{kind}_removed/{name}", kind)
        for name in ("kl_old_new_k1", "kl_old_new_k3", *(n for n in total if n.startswith("kl_ref_"))):
            divide(name, name, "tokens")
        divide("ratio_mean", "ratio", "tokens")
        if total.get("ratio_squared", 0.0) != 0:
            result["ess_fraction"] = total["ratio"] ** 2 / (total["tokens"] * total["ratio_squared"])
        if "log_ratio_abs_max" in total:
            result["log_ratio_abs_max"] = total["log_ratio_abs_max"]
        return result


@torch.no_grad()
def clip_stats(decision: Decision, logp_new: Tensor, logp_old: Tensor, factor: Tensor) -> Stats:
    """The sums of one batch.

    logp_new, logp_old: 0 where masked
    factor:             the reduction's factor of each token, without the constant of the step
    """
    d, mask, signal = decision, decision.mask, decision.signal
    sums: dict[str, Tensor] = {
        "tokens": mask.sum(),
        "signal": signal.sum(),
        "stopped": (d.effect == Effect.STOPPED).sum(),
        "out_of_band": (signal & ~d.in_band).sum(),
        "ratio": on_grid(torch.where(mask, d.ratio, 0)).sum(),
        "ratio_squared": on_grid(torch.where(mask, d.ratio.double() ** 2, 0)).sum(),
    }
    region = d.region.flatten().long()
    region_counts = region.bincount(minlength=len(Region))
    effect_counts = d.effect.flatten().long().bincount(minlength=len(Effect))
    sums |= {f"region/{r.name.lower()}": region_counts[r] for r in Region if r is not Region.MASKED}
    sums |= {f"effect/{e.name.lower()}": effect_counts[e] for e in Effect if e is not Effect.NONE}

    x = (logp_new - logp_old).double()
    sums["kl_old_new_k1"] = on_grid(torch.where(mask, -x, 0)).sum()
    sums["kl_old_new_k3"] = on_grid(torch.where(mask, x.expm1() - x, 0)).sum()

    before = torch.where(signal, d.weight_unclipped.abs() * factor, 0).double()
    left = torch.where(signal, (d.weight * d.weight_unclipped.sign()).clamp_min(0) * factor, 0).double()
    removed = (before - left).clamp_min(0)
    not_chosen = -torch.expm1(logp_new.double())  # 1 - p, without cancellation for p near 1
    for kind, scale in (("weight", 1.0), ("gradient", not_chosen)):
        sums[kind] = on_grid(before * scale).sum()
        by_region = region.bincount(on_grid(removed * scale).flatten(), minlength=len(Region))
        sums |= {f"{kind}_removed/{r.name.lower()}": by_region[r] for r in CLIP_REGIONS}
        sums[f"{kind}_removed/total"] = by_region.sum()

    largest = {"log_ratio_abs_max": d.log_ratio.abs().amax().double()} if d.log_ratio.numel() else {}
    return Stats({name: value.double() for name, value in sums.items()}, largest)
