"""The rules: what each does to a token, as a value (surrogate) and as a gradient (weight).

    grad J = w * grad log pi_new(token)

Symbols: r importance ratio, A advantage, lo = eps_low, hi = eps_high, c = dual_clip.
Shapes: one value a token, [B, T] or packed [N].
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinghai.objective.decision import Region
from dinghai.objective.registry import Parameter, Parameters, Rule, Tokens, register

CLIP_PARAMETERS = {
    "eps_low": Parameter(
        0.2, "offset from a ratio of 1", "0.1-0.3", "the lower bound is 1 - eps_low", above=0, below=1
    ),
    "eps_high": Parameter(0.2, "offset from a ratio of 1", "0.1-0.4", "the upper bound is 1 + eps_high", above=0),
    "dual_clip": Parameter(
        None, "absolute ratio", "3-10", "tokens with A < 0 and a ratio beyond it are stopped", above=1
    ),
}


def clip_surrogate(tokens: Tokens, parameters: Parameters) -> Tensor:
    """J = min(r A, clip(r, 1-lo, 1+hi) A), and with a dual clip max(J, c A) where A < 0.

    PPO: 1707.06347 eq. 7. GRPO: 2402.03300 eq. 3. Two bounds: DAPO, 2503.14476 eq. 8. Dual clip: 1912.09729 eq. 5.
    Once clipped J is constant in r, so its gradient is exactly 0; it is not held at some small value.
    """
    r, A = tokens.ratio, tokens.advantage
    lo, hi, c = parameters["eps_low"], parameters["eps_high"], parameters["dual_clip"]
    J = torch.minimum(r * A, r.clamp(1 - lo, 1 + hi) * A)
    if c is None:
        return J
    return torch.where((A < 0) & (r > c), c * A, J)


def clip_weight(tokens: Tokens, parameters: Parameters) -> Tensor:
    """w = r A, or exactly 0 in `overshoot`, `escaped` and `dual`. On a bound (r = 1-lo, 1+hi or c) it is r A."""
    region = clip_region(tokens, parameters)
    stopped = (region == Region.OVERSHOOT) | (region == Region.ESCAPED) | (region == Region.DUAL)
    return torch.where(stopped, 0, tokens.ratio * tokens.advantage)


def clip_region(tokens: Tokens, parameters: Parameters) -> Tensor:
    """The quadrant beyond the bounds that a token lies in, uint8; bounds belong to `inside`."""
    r, A, c = tokens.ratio, tokens.advantage, parameters["dual_clip"]
    above, below = _beyond(tokens, parameters)
    region = torch.full_like(r, Region.INSIDE, dtype=torch.uint8)
    region[above & (A > 0)] = Region.OVERSHOOT
    region[above & (A < 0)] = Region.RELAPSE
    region[below & (A > 0)] = Region.FORGOTTEN
    region[below & (A < 0)] = Region.ESCAPED
    if c is not None:
        region[(A < 0) & (r > c)] = Region.DUAL
    return region


def clip_in_band(tokens: Tokens, parameters: Parameters) -> Tensor:
    """1-lo <= r <= 1+hi."""
    above, below = _beyond(tokens, parameters)
    return ~(above | below)


def _beyond(tokens: Tokens, parameters: Parameters) -> tuple[Tensor, Tensor]:
    return tokens.ratio > 1 + parameters["eps_high"], tokens.ratio < 1 - parameters["eps_low"]


for name, source in (
    ("ppo", "PPO, arXiv 1707.06347, eq. 7; dual clip: 1912.09729, eq. 5"),
    ("grpo", "GRPO, arXiv 2402.03300, eq. 3: PPO's clip with an advantage from the group; dual clip: 1912.09729, eq. 5"),
):
    register(Rule(name, clip_surrogate, clip_weight, clip_region, clip_in_band, CLIP_PARAMETERS, source))
