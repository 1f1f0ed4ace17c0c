"""Importance ratios r = π_new / π_old, of a token or of a whole sequence, in log space.

Shapes: N tokens that count (packed, see layout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from dinghai.objective.layout import Layout

RatioLevel = Literal["token", "sequence"]


def token_log_ratio(logp_new_N: Tensor, logp_old_N: Tensor, layout: Layout) -> Tensor:
    """log r_t = log π_new(token) - log π_old(token), in nats: [N] -> [N].

    Not clamped: a clamp has gradient 0 exactly where a token ran away, and no metric would tell.
    Source: PPO, arXiv 1707.06347, section 3.
    """
    return logp_new_N - logp_old_N


def sequence_log_ratio(logp_new_N: Tensor, logp_old_N: Tensor, layout: Layout) -> Tensor:
    """log s = (1/|y|) Σ_t log r_t over the tokens of y that count, given to each of them: [N] -> [N], in nats.

    Source: GSPO, arXiv 2507.18071, equation 7 (s is the geometric mean of the token ratios) and, for the gradient,
    equation 14 (GSPO-token): each token's ∇log π gets the weight s·A, and the 1/|y| comes from the reduction
    `seq-mean-token-mean`. For one advantage per sequence and that reduction it is exactly the gradient of GSPO,
    ∇ s·A = s·A · (1/|y|) Σ_t ∇log π_t. Other reductions weigh long sequences otherwise than the paper does.
    """
    # float64, since the bounds on s are of the order of 1e-4 and the sum runs over thousands of tokens.
    log_s_B = layout.mean((logp_new_N - logp_old_N).double())
    return layout.spread(log_s_B).to(logp_new_N.dtype)


LOG_RATIO: dict[RatioLevel, Callable[[Tensor, Tensor, Layout], Tensor]] = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
}
RATIO_LEVELS: tuple[RatioLevel, ...] = get_args(RatioLevel)
