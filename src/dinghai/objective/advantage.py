"""Advantages: relative to the group (GRPO) or to a critic (GAE, PPO).

Shapes: B sequences, T tokens of a padded row, K groups.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dinghai.errors import InputError

STD_FLOOR = 1e-6  # added to a standard deviation, as DeepSeek and verl do: rewards that differ by rounding stay ~0
AdvantageScale = Literal["group", "batch", "none"]


def group_advantage(reward_B: Tensor, group_B: Tensor, scale: AdvantageScale = "group") -> Tensor:
    """A = (R - mean of the group) / (std + 1e-6): [B], [B] -> [B].

    Args:
        reward_B: one reward per completion.
        group_B: integer id of the prompt each completion belongs to; any integers, in any order.
        scale: divide by the unbiased standard deviation of the group's rewards ("group", GRPO), of all rewards of the
            batch ("batch"), or not at all ("none", Dr. GRPO: the division favours questions that are nearly always or
            nearly never solved).

    A group whose rewards are all equal gets exactly 0.0, not the rounding error of a mean: it has no signal, and code
    that skips such tokens asks `A == 0`. So does a group of one, which has nothing to be compared with (R itself, which
    some frameworks give, is a reward without a baseline). Non-finite rewards make their group's advantages NaN.

    Source: GRPO, arXiv 2402.03300, section 4.1.2; Dr. GRPO, arXiv 2503.20783.

    Raises:
        InputError: shapes or dtypes do not fit, or the scale is unknown.
    """
    _check_groups(reward_B, group_B, scale)
    reward_B = _as_float(reward_B)
    _, group_B, size_K = torch.unique(group_B, return_inverse=True, return_counts=True)
    sum_K = reward_B.new_zeros(size_K.shape, dtype=torch.float64).index_add_(0, group_B, reward_B.double())
    centred_B = reward_B.double() - (sum_K / size_K)[group_B]
    low_K = reward_B.new_zeros(size_K.shape).scatter_reduce(0, group_B, reward_B, "amin", include_self=False)
    high_K = reward_B.new_zeros(size_K.shape).scatter_reduce(0, group_B, reward_B, "amax", include_self=False)
    agreed_K = (low_K == high_K) & low_K.isfinite()
    centred_B = torch.where(agreed_K[group_B], 0.0, centred_B)
    if scale == "group":
        square_K = torch.zeros_like(sum_K).index_add_(0, group_B, centred_B.square())
        std_K = (square_K / (size_K - 1).clamp(min=1)).sqrt()
        centred_B = centred_B / (std_K + STD_FLOOR)[group_B]
    elif scale == "batch" and reward_B.numel() > 1:
        centred_B = centred_B / (reward_B.double().std() + STD_FLOOR)
    return centred_B.to(reward_B.dtype)


def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages and returns, both [B, T] and 0 where masked.

        δ_t = R_t + γ·V_{t+1} - V_t,   A_t = δ_t + γ·λ·A_{t+1},   return_t = A_t + V_t

    Masked tokens are stepped over as if they were not there, holes (tool output) included: t+1 is the next token that
    counts. Rewards and values at masked positions are ignored, so a final reward belongs on the last token that counts.
    After the last token the value is 0: the episode ended. Gradients do not flow.

    Args:
        reward_BT: reward of each token. value_BT: the critic's value before each token. gamma, lam: in [0, 1].

    Source: arXiv 1506.02438, equation 16.

    Raises:
        InputError: shapes do not fit, the mask is not boolean, or gamma or lam is out of range.
    """
    _check_gae(reward_BT, value_BT, mask_BT, gamma, lam)
    value_BT = _as_float(value_BT.detach()).masked_fill(~mask_BT, 0.0)
    reward_BT = reward_BT.detach().to(value_BT.dtype).masked_fill(~mask_BT, 0.0)
    advantage_BT = torch.zeros_like(value_BT)
    next_value_B = next_advantage_B = value_BT.new_zeros(value_BT.shape[0])
    for t in reversed(range(value_BT.shape[1])):
        counts_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantage_BT[:, t] = torch.where(counts_B, advantage_B, 0.0)
        next_value_B = torch.where(counts_B, value_BT[:, t], next_value_B)
        next_advantage_B = torch.where(counts_B, advantage_B, next_advantage_B)
    return advantage_BT, advantage_BT + value_BT


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-6) over the unmasked elements, unbiased; masked ones are 0 and never read. Any shape.

    Where all elements are equal, or there is one, the result is exactly 0.

    Raises:
        InputError: the mask is not boolean or has another shape.
    """
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise InputError(f"whiten needs a boolean mask of shape {list(x.shape)}; got {mask.dtype} {list(mask.shape)}")
    counted = _as_float(x)[mask]
    white = torch.zeros_like(_as_float(x))
    if counted.numel() > 1:
        std, mean = torch.std_mean(counted)
        white[mask] = torch.where(counted.min() == counted.max(), 0.0, (counted - mean) / (std + STD_FLOOR))
    return white


def _as_float(x: Tensor) -> Tensor:
    """float64 stays, all else is computed in float32."""
    return x if x.dtype == torch.float64 else x.float()


def _check_groups(reward_B: Tensor, group_B: Tensor, scale: str) -> None:
    if reward_B.dim() != 1 or group_B.shape != reward_B.shape:
        raise InputError(
            f"reward and group must be vectors of one length [B]; got {list(reward_B.shape)}, {list(group_B.shape)}"
        )
    if group_B.is_floating_point() or group_B.is_complex() or group_B.dtype == torch.bool:
        raise InputError(f"group ids must be integers; got {group_B.dtype}")
    if scale not in ("group", "batch", "none"):
        raise InputError(f'scale must be "group", "batch" or "none"; got {scale!r}')


def _check_gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> None:
    if reward_BT.dim() != 2 or not reward_BT.shape == value_BT.shape == mask_BT.shape:
        raise InputError(
            "gae needs reward, value and mask of one shape [B, T]; got "
            f"{list(reward_BT.shape)}, {list(value_BT.shape)}, {list(mask_BT.shape)}"
        )
    if mask_BT.dtype != torch.bool:
        raise InputError(f"mask must be boolean, True where a token counts; got {mask_BT.dtype} (use mask.bool())")
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise InputError(f"gamma and lam must lie in [0, 1]; got {gamma!r}, {lam!r}")
