"""What a rule makes of a few ratios, for both signs of the advantage: the table of `dinghai rules NAME`.

Shapes: A the two signs of the advantage, N ratios.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dinghai.catalogue.lone_tokens import lone_inputs
from dinghai.objective import Region, Rule

TOKEN_RATIOS = (0.1, 0.5, 0.79, 1.0, 1.27, 1.29, 2.0, 4.0, 10.0)
SEQUENCE_RATIOS = (0.99, 0.999, 0.9996, 1.0, 1.0003, 1.0005, 1.001, 1.01, 1.1)
PROBABILITY = 0.05  # of each token under π_old: rules whose bounds depend on it need one, and 10·0.05 is still one


@dataclass(frozen=True)
class WeightRow:
    """One ratio: the weight over |A|, and the region, for A = 1 and A = -1."""

    ratio: float
    weight_good: float
    region_good: Region
    weight_bad: float
    region_bad: Region


def ratios_for(rule: Rule) -> tuple[float, ...]:
    """Ratios on both sides of the rule's bounds; those of a sequence's geometric mean are a hundred times nearer 1."""
    return SEQUENCE_RATIOS if rule.ratio_levels[0] in ("sequence", "sequence-token") else TOKEN_RATIOS


def weight_table(rule: Rule, given: dict[str, float | None]) -> list[WeightRow]:
    """The rows for the rule's own ratios, with the parameters given and else its defaults.

    Each token is a sequence of its own. A rule that looks at the whole minibatch sees these tokens as one.

    Raises:
        InputError: there is no such parameter, or a value is out of range.
    """
    parameters = rule.parse(given)
    ratios = ratios_for(rule)
    ratio_2N = torch.tensor(ratios * 2, dtype=torch.float64)
    advantage_2N = torch.tensor([1.0] * len(ratios) + [-1.0] * len(ratios), dtype=torch.float64)
    x = lone_inputs(rule, parameters, ratio_2N, advantage_2N, torch.full_like(ratio_2N, PROBABILITY))
    weight_AN = rule.weight(x, parameters).reshape(2, -1).tolist()
    region_AN = rule.region(x, parameters).reshape(2, -1).tolist()
    return [
        WeightRow(ratio, good, Region(region_good), 0.0 - bad, Region(region_bad))
        for ratio, good, bad, region_good, region_bad in zip(ratios, *weight_AN, *region_AN, strict=True)
    ]
