"""What a rule decides about a token by its ratio alone: where its regions end, and its weight as a curve.

Found by asking the rule itself, so that one of your own has them too. A run keeps them in rule.json.

Shapes: X log-ratios, each of a token of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dinghai.objective.decision import Region
from dinghai.objective.inputs import TokenInputs
from dinghai.objective.layout import Layout
from dinghai.objective.policy_loss import PolicyLoss
from dinghai.objective.ratio import RatioLevel
from dinghai.objective.regions import no_bounds

RULE_FACTS_VERSION = 1

REACH = 30.0
"""The largest log-ratio that is asked for, nats: a ratio of 1e13."""

NEAREST = 1e-7
"""The smallest one but 0: a thousandth of GSPO's bounds."""

PROBABILITIES = (0.9, 0.3, 0.05, 0.001)
"""Of the token under π_old. Each is asked as far as π_new stays a probability."""

RARE = math.exp(-REACH)
"""A probability under π_old from which π_new can rise by REACH."""

CURVE_POINTS = 80  # on each side of r = 1
BANDS_SHOWN = 8.0
"""How far a curve goes, in units of the band's widest bound: somewhat farther than the map of tokens does."""

# Where a curve ends if the rule has no boundary to show: as far as tokens go in a run whose ratios nothing holds.
REACH_WITHOUT_BOUNDARIES: dict[RatioLevel, float] = {
    "token": 8.0, "sequence": 0.25, "sequence-token": 0.25, "sequence-product": 12.0
}  # fmt: skip

Other = Literal["probability", "minibatch", "advantage"]
OTHERS: dict[Other, str] = {
    "probability": "the probability of the token",
    "minibatch": "other tokens",
    "advantage": "the size of the advantage",
}


@dataclass(frozen=True)
class Boundary:
    """Where one region ends and the next begins, for one sign of the advantage."""

    sign: int  # of the advantage
    last_below: float  # two neighbouring log-ratios, nats
    first_above: float
    below: Region
    above: Region

    @property
    def log_ratio(self) -> float:
        """The one nearer to r = 1: a token exactly on a bound is within it."""
        return min(self.last_below, self.first_above, key=abs)

    def as_json(self) -> dict[str, Any]:
        """An entry of `boundaries` in rule.json."""
        return {
            "advantage": self.sign,
            "log_ratio": self.log_ratio,
            "ratio": float(f"{math.exp(self.log_ratio):.14g}"),  # exp and log err in the 16th digit: 1.2 stays 1.2
            "below": self.below.name.lower(),
            "above": self.above.name.lower(),
        }


@torch.no_grad()
def probe(policy_loss: PolicyLoss) -> dict[str, Any]:
    """The facts of a rule with its parameters, as rule.json holds them. Parameters and weights may be infinite.

    Keys:
        version; name, title, paper, formula, zero; ratio, reduction, parameters: what the rule is.
        boundaries: for A > 0 and then for A < 0, ascending, see `Boundary`. Empty where they vary.
        boundaries_vary_with: what else decides but the ratio and the sign of A: "probability" (π_old of the token),
            "minibatch" (other tokens) or "advantage" (its size). None: nothing does.
        weights: {"log_ratio", "good", "bad"}: w/|A| with the sign of A taken out, for A > 0 and A < 0, at some 160
            log-ratios around the boundaries. None where it varies with anything else.
        note: why there are no boundaries, or no weights, in words. None where there is nothing to say.

    Raises nothing for what a rule does: where it cannot be asked there is neither, and the note says why.
    """
    rule = policy_loss.rule
    facts: dict[str, Any] = {
        "version": RULE_FACTS_VERSION,
        "name": rule.name,
        "title": rule.title,
        "paper": rule.paper,
        "formula": rule.formula,
        "zero": rule.zero,
        "ratio": policy_loss.ratio,
        "reduction": policy_loss.reduction.name,
        "parameters": dataclasses.asdict(policy_loss.parameters),
        "boundaries": [],
        "boundaries_vary_with": None,
        "weights": None,
        "note": None,
    }
    if rule.context is not None:
        varies = None if rule.region is no_bounds else "minibatch"
        note = "the rule looks at the whole minibatch before it decides about a token"
        return facts | {"boundaries_vary_with": varies, "note": note}
    try:
        return facts | _answers(_Asked(policy_loss))
    except Exception as error:  # a rule may be anybody's code, and no run ends for want of a picture of its rule
        why = f"the rule cannot be asked about single tokens ({type(error).__name__}: {str(error)[:200]})"
        return facts | {"note": why}


def _answers(asked: _Asked) -> dict[str, Any]:
    boundaries, regions_vary = asked.boundaries()
    log_ratio_X = _curve_points(boundaries, asked.level)
    weights_vary = asked.varies(asked.relative_weight, log_ratio_X)
    weights = None
    if weights_vary is None:
        good, bad = (asked.relative_weight(log_ratio_X, sign).tolist() for sign in (1, -1))
        weights = {"log_ratio": log_ratio_X, "good": [_short(w) for w in good], "bad": [_short(w) for w in bad]}
    found = (("boundaries vary", regions_vary), ("the weight over |A| varies", weights_vary))
    notes = [f"{what} with {OTHERS[other]} as well" for what, other in found if other is not None]
    return {
        "boundaries": [boundary.as_json() for boundary in boundaries],
        "boundaries_vary_with": regions_vary,
        "weights": weights,
        "note": "; ".join(notes) or None,
    }


class _Asked:
    """A rule that decides token by token, with its parameters."""

    def __init__(self, policy_loss: PolicyLoss) -> None:
        self.rule, self.parameters, self.level = policy_loss.rule, policy_loss.parameters, policy_loss.ratio

    def region(self, log_ratio_X: list[float], sign: int, **how: Any) -> Tensor:
        """The `Region` of a token at each log-ratio: [X]. Arguments as those of `_tokens`."""
        return self._of_each(self.rule.region(self._tokens(log_ratio_X, sign, **how), self.parameters), log_ratio_X)

    def relative_weight(self, log_ratio_X: list[float], sign: int, **how: Any) -> Tensor:
        """w/A, which is w/|A| with the sign of A taken out: [X]. Arguments as those of `_tokens`."""
        x = self._tokens(log_ratio_X, sign, **how)
        return self._of_each(self.rule.weight(x, self.parameters) / x.advantage, log_ratio_X)

    def boundaries(self) -> tuple[list[Boundary], Other | None]:
        """For A > 0, then for A < 0, ascending; or none, and what they vary with."""
        grid_X = _signed_log_grid()
        if varies := self.varies(self.region, grid_X):
            return [], varies
        boundaries = [boundary for sign in (1, -1) for boundary in self._transitions(grid_X, sign)]
        if not boundaries:
            return [], None
        beside_X = [b.log_ratio * (1 + shift) for b in boundaries for shift in (-1e-9, 1e-9)]  # nearer than the grid
        if varies := self.varies(self.region, beside_X):
            return [], varies
        return boundaries, None

    def varies(self, answer: Callable[..., Tensor], log_ratio_X: list[float]) -> Other | None:
        """The first thing, other than the ratio and the sign of A, that `answer` is seen to vary with."""
        for sign in (1, -1):
            plain_X = answer(log_ratio_X, sign)
            if not _agree(plain_X, answer(log_ratio_X, sign, shares_sequence=True)):
                return "minibatch"
            if not _agree(plain_X, answer(log_ratio_X, sign, size=3.0)):
                return "advantage"
            for probability in PROBABILITIES:
                possible = [i for i, log_ratio in enumerate(log_ratio_X) if log_ratio < -math.log(probability) - 1e-9]
                those_X = [log_ratio_X[i] for i in possible]
                if those_X and not _agree(plain_X[possible], answer(those_X, sign, probability=probability)):
                    return "probability"
        return None

    def _transitions(self, grid_X: list[float], sign: int) -> list[Boundary]:
        regions = self.region(grid_X, sign).tolist()
        boundaries = []
        for (low, below), (high, above) in itertools.pairwise(zip(grid_X, regions, strict=True)):
            while below != above:  # more than once where several boundaries lie between neighbours of the grid
                low, first = self._bisect(low, high, below, sign)
                reached = int(self.region([first], sign))
                boundaries.append(Boundary(sign, low, first, Region(below), Region(reached)))
                low, below = first, reached
        return boundaries

    def _bisect(self, low: float, high: float, below: int, sign: int) -> tuple[float, float]:
        """Neighbouring numbers: the first lies in the region `below`, as `low` does, and the second does not."""
        while high - low > 1e-18:  # around 0 there would be a thousand halvings more
            middle = (low + high) / 2
            if middle in (low, high):
                break
            inside = int(self.region([middle], sign)) == below
            low, high = (middle, high) if inside else (low, middle)
        return low, high

    def _tokens(
        self,
        log_ratio_X: list[float],
        sign: int,
        *,
        size: float = 1.0,
        probability: float = RARE,
        shares_sequence: bool = False,
    ) -> TokenInputs:
        """A token for each log-ratio, a sequence of its own.

        Args:
            size: |A|.
            probability: π_old of the token.
            shares_sequence: each token is followed by one more of its sequence, at a ratio of 0.7.
        """
        log_ratio_X1 = torch.tensor(log_ratio_X, dtype=torch.float64)[:, None]
        others = [torch.full_like(log_ratio_X1, math.log(0.7))] if shares_sequence else []
        log_ratio_N = torch.cat([log_ratio_X1, *others], dim=1).reshape(-1)
        logp_old_N = torch.full_like(log_ratio_N, math.log(probability))
        ends = torch.arange(0, len(log_ratio_N) + 1, 1 + len(others))
        return TokenInputs(
            log_ratio=log_ratio_N,
            ratio=log_ratio_N.exp(),
            advantage=torch.full_like(log_ratio_N, sign * size),
            logp_new=logp_old_N + log_ratio_N,
            logp_old=logp_old_N,
            layout=Layout.packed(log_ratio_N.shape, ends),
        )

    @staticmethod
    def _of_each(answer_N: Tensor, log_ratio_X: list[float]) -> Tensor:
        """Without the answers about the other tokens of a shared sequence: [N] -> [X]."""
        return answer_N.reshape(len(log_ratio_X), -1)[:, 0]


def _agree(one_X: Tensor, other_X: Tensor) -> bool:
    return torch.allclose(one_X.double(), other_X.double(), rtol=1e-6, atol=1e-9, equal_nan=True)


def _short(weight: float) -> float:
    return float(f"{weight:.8g}")


def _signed_log_grid(points_a_decade: int = 120) -> list[float]:
    """-REACH … -NEAREST, 0, NEAREST … REACH: neighbours 2 % apart."""
    points = round(points_a_decade * math.log10(REACH / NEAREST)) + 1
    positive = torch.logspace(math.log10(NEAREST), math.log10(REACH), points, dtype=torch.float64).tolist()
    return [-x for x in reversed(positive)] + [0.0, *positive]


def _curve_points(boundaries: Sequence[Boundary], level: RatioLevel) -> list[float]:
    """Log-ratios well beyond the band and every boundary, with both sides of each, and densest about r = 1."""
    distances = [abs(b.log_ratio) for b in boundaries if b.log_ratio != 0]
    band = max((abs(b.log_ratio) for b in boundaries if Region.INSIDE in (b.below, b.above)), default=0.0)
    reach = max(1.5 * max(distances), BANDS_SHOWN * band) if distances else REACH_WITHOUT_BOUNDARIES[level]
    near = min(distances) if distances else reach / BANDS_SHOWN  # how far from 1 the points are about evenly spaced
    even = torch.arange(-CURVE_POINTS, CURVE_POINTS + 1).double() / CURVE_POINTS * math.asinh(reach / near)
    sides = [side for b in boundaries for side in (b.last_below, b.first_above)]
    return sorted({*(near * even.sinh()).tolist(), *sides})
