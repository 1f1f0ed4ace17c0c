"""The critic of PPO: the policy's backbone, copied, with a linear head that estimates the return from each state.

Shapes: B sequences, S padded positions, H hidden size, N packed completion tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from dinghai.errors import InputError
from dinghai.policy.model import Policy
from dinghai.policy.reading import read_states
from dinghai.policy.sequences import TokenSequence


class Critic(nn.Module):
    """V(state) of the state before each completion token. Starts at 0 everywhere, from the policy's own features."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        if policy.backbone is None:
            raise InputError(
                f'advantage.kind = "gae": a {type(policy.model).__name__} gives no hidden states to estimate values '
                'from; use advantage.kind = "group"'
            )
        self.backbone = copy.deepcopy(policy.backbone)
        # With adapters it is they that are trained, here as in the policy.
        if not policy.has_adapters:
            self.backbone.requires_grad_(True)
        width = policy.model.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._reading, self._pad_id, self._device = policy.reading, policy.pad_id, policy.device

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """value_N, float32, packed sequence after sequence."""
        hidden_NH, _ = read_states(self._hidden, sequences, self._reading, self._pad_id, self._device)
        return self.head(hidden_NH.float())[:, 0]

    def _hidden(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None) -> Tensor:
        places = {} if position_ids_BS is None else {"position_ids": position_ids_BS}
        return self.backbone(input_ids=input_ids_BS, use_cache=False, **places).last_hidden_state

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
