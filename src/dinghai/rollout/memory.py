"""Keys and values of what was read, kept where attention reads them without copying.

Shapes: L layers, K places (a prompt's, or a row's), T columns (one a token), d size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Memory:
    """For each layer keys and values [K, kv_heads, T, d], made when the layer first asks and zero until written.

    On CPU they are float32 whatever the model's dtype: its small products are faster so, and exact.
    """

    def __init__(self, places: int, columns: int) -> None:
        self.places, self.columns = places, columns
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; key and value, [.., kv_heads, .., d], say what they look like."""
        if layer not in self._layers:
            dtype = torch.float32 if key.device.type == "cpu" else key.dtype
            self._layers[layer] = tuple(  # type: ignore[assignment]
                torch.zeros(self.places, x.shape[1], self.columns, x.shape[3], dtype=dtype, device=x.device)
                for x in (key, value)
            )
        return self._layers[layer]

    def move(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copies the first columns of the places `source` to the places `target`, which are others."""
        for pair in self._layers.values():
            for kept in pair:
                kept[target, :, :columns] = kept[source, :, :columns]
