"""Advantages: from rewards of completions, or from rewards and values of tokens.

Shapes: B samples, T tokens of a sample (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinghai.errors import InputError

STD_FLOOR = 1e-6  # added to standard deviations, as TRL (1e-4) and verl (1e-6) do


def group_advantage(reward_B: Tensor, group_B: Tensor, scale: str = "group") -> Tensor:
    """A_i = (R_i - mean of its group) / std (GRPO, 2402.03300 sec. 4.1.2; without std: Dr. GRPO, 2503.20783).

    reward_B: one reward a completion
    group_B:  integer; completions of one prompt share a number
    scale:    "group": divide by the group's standard deviation; "batch": by that of all rewards; "none": not at all

    Standard deviations are unbiased (n-1), plus 1e-6. A group whose rewards are all equal gets exactly 0: computed as
    R - mean it would be rounding noise, which the division would blow up. So does a group of one, since there is
    nothing to compare it with.
    """
    if scale not in ("group", "batch", "none"):
        raise InputError(f"scale must be 'group', 'batch' or 'none', got {scale!r}")
    if reward_B.shape != group_B.shape or reward_B.dim() != 1:
        raise InputError(
            f"reward and group must both be [B], got {tuple(reward_B.shape)} and {tuple(group_B.shape)}"
        )
    _, group_B = group_B.unique(return_inverse=True)
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    count_G = torch.bincount(group_B, minlength=groups).to(reward_B.dtype)
    mean_G = reward_B.new_zeros(groups).index_add(0, group_B, reward_B) / count_G
    centred_B = reward_B - mean_G[group_B]
    if scale == "group":
        variance_G = reward_B.new_zeros(groups).index_add(0, group_B, centred_B**2) / (count_G - 1).clamp_min(1)
        centred_B = centred_B / (variance_G.sqrt()[group_B] + STD_FLOOR)
    elif scale == "batch" and len(reward_B) > 1:
        centred_B = centred_B / (reward_B.std() + STD_FLOOR)
    lowest_G = reward_B.new_full((groups,), torch.inf).scatter_reduce(0, group_B, reward_B, "amin")
    highest_G = reward_B.new_full((groups,), -torch.inf).scatter_reduce(0, group_B, reward_B, "amax")
    return torch.where((lowest_G == highest_G)[group_B], 0.0, centred_B)


def gae(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (1506.02438 eq. 16): advantage_BT and the value targets advantage + value.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1}

    mask_BT: True for the policy's own tokens; t+1 is the next such token, so tool output in between is skipped (its
             rewards are not counted). After the last one the value is 0: an episode ends with its completion.
    Masked positions get 0.
    """
    advantage_BT = torch.zeros_like(value_BT)
    next_value_B = torch.zeros_like(value_BT[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(value_BT.shape[1])):
        mask_B = mask_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantage_BT[:, t] = torch.where(mask_B, advantage_B, 0.0)
        next_value_B = torch.where(mask_B, value_BT[:, t], next_value_B)
        next_advantage_B = torch.where(mask_B, advantage_B, next_advantage_B)
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-6) over the unmasked entries, 0 elsewhere."""
    chosen = x[mask]
    if len(chosen) < 2:
        return torch.where(mask, x, 0.0)
    return torch.where(mask, (x - chosen.mean()) / (chosen.std() + STD_FLOOR), 0.0)
