"""A rule's decision about tokens that stand alone: each is a sequence of its own, with a ratio that is given.

Shapes: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinghai.objective import Effect, Layout, Parameters, Region, Rule, TokenInputs
from dinghai.objective.decision import effects


@dataclass(frozen=True)
class LoneToken:
    """What a rule makes of one token, from the rule's own functions."""

    ratio: float
    advantage: float
    value: float  # J
    weight: float  # w
    weight_unclipped: float  # w0 = r·A
    region: Region
    effect: Effect


def lone_inputs(
    rule: Rule, parameters: Parameters, ratio_N: Tensor, advantage_N: Tensor, p_old_N: Tensor
) -> TokenInputs:
    """What the rule looks at, in float64. A rule that looks at the whole minibatch sees these tokens as one.

    The ratio is taken as it is, not as the exponential of a difference of log-probs: r = 1.2 is then exactly on a bound
    of 1.2, and not a rounding beyond it.
    """
    log_ratio_N, logp_old_N = ratio_N.log(), p_old_N.log()
    layout = Layout.packed(ratio_N.shape, torch.arange(len(ratio_N) + 1))
    x = TokenInputs(log_ratio_N, ratio_N, advantage_N, logp_old_N + log_ratio_N, logp_old_N, layout)
    return x if rule.context is None else replace(x, context=rule.context(x, parameters))


def decide_alone(rule: Rule, parameters: Parameters, ratio: float, advantage: float, p_old: float) -> LoneToken:
    """The decision about one token, alone in its minibatch."""
    numbers = (torch.tensor([number], dtype=torch.float64) for number in (ratio, advantage, p_old))
    x = lone_inputs(rule, parameters, *numbers)
    weight_N, unclipped_N = rule.weight(x, parameters), x.importance_weighted
    return LoneToken(
        ratio=ratio,
        advantage=advantage,
        value=rule.surrogate(x, parameters).item() + 0.0,  # + 0.0: no -0 on a page
        weight=weight_N.item() + 0.0,
        weight_unclipped=unclipped_N.item() + 0.0,
        region=Region(int(rule.region(x, parameters))),
        effect=Effect(int(effects(weight_N, unclipped_N, x.advantage))),
    )
