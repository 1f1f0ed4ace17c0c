"""The attention of a model of `transformers`, handed to whoever knows how the tokens just read belong together.

Every model that asks the library's `AttentionInterface` for its attention can be switched to the name registered
here. Within `attending(pattern)` its layers ask the pattern; outside they get the library's `sdpa`, with its masks.

Shapes: R rows (1 where sequences are packed), S tokens just read, d size of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dinghai"

# What layers hand on beside the tensors and leaves the attention as it is: positions are already in query and key.
WITHOUT_EFFECT = {
    "position_ids",
    "position_embeddings",
    "cache_position",
    "past_key_values",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "dropout",
    "is_causal",
    "layer_idx",
    "head_mask",
    "logits_to_keep",
}


class AttentionPattern(Protocol):
    """Who attends to whom among the tokens just read (and those that the pattern itself remembers)."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """The attention of one layer.

        query:          [R, heads, S, d], key and value [R, kv_heads, S, d (value: its own)], after the rotation
        scaling:        factor of the products of query and key
        sliding_window: a token sees this many, itself and those before it; None: all before it

        Returns [R, S, heads, d of the value].
        """
        ...


class UnknownAttention(Exception):
    """A layer asked for something that a pattern does not know. Says what, as the end of a sentence."""


@dataclass
class Asked:
    """What a model asked of patterns.

    window_of_layer: the sliding window that each layer told (None: none)
    masked:          the sliding windows that its masks would have had
    """

    window_of_layer: dict[int, int | None] = field(default_factory=dict)
    masked: set[int] = field(default_factory=set)

    @property
    def told(self) -> set[int]:
        """The sliding windows that layers told."""
        return {window for window in self.window_of_layer.values() if window is not None}


_pattern: ContextVar[AttentionPattern | None] = ContextVar("dinghai_attention_pattern", default=None)
_asked: ContextVar[Asked | None] = ContextVar("dinghai_attention_asked", default=None)


def current() -> AttentionPattern | None:
    """The pattern that attention layers ask just now."""
    return _pattern.get()


@contextlib.contextmanager
def attending(pattern: AttentionPattern | None) -> Iterator[None]:
    """Within it every attention layer of an installed model asks `pattern`, and no attention mask is made."""
    token = _pattern.set(pattern)
    try:
        yield
    finally:
        _pattern.reset(token)


@contextlib.contextmanager
def watching() -> Iterator[Asked]:
    """Notes what a model asks of patterns."""
    asked = Asked()
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


class Recomputing:
    """The pattern of the forward pass again, for layers that checkpointing recomputes in the backward pass.

    May be entered more than once, as a graph may be walked backwards more than once.
    """

    def __init__(self) -> None:
        self._pattern = current()
        self._contexts: list[contextlib.AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._contexts.append(attending(self._pattern))
        self._contexts[-1].__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.pop().__exit__(kind, error, trace)


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """`context_fn` of torch's checkpoint: the contexts of the forward pass and of its recomputation."""
    return contextlib.nullcontext(), Recomputing()


def install(model: Any) -> str | None:
    """Switches `model` to the attention registered here; it computes what it did before where no pattern is active.

    Returns None, or why this architecture does not allow it: the end of a sentence.
    """
    kind = type(model).__name__
    configurations = {
        id(part.config): part.config for part in model.modules() if hasattr(part, "set_attn_implementation")
    }
    if all(config._attn_implementation == NAME for config in configurations.values()):
        return None
    others = {config._attn_implementation for config in configurations.values()} - {"sdpa", NAME}
    if others or not model._can_set_attn_implementation():
        return f"a {kind} computes its attention in its own way"
    model.set_attn_implementation(NAME)
    return None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What layers of an installed model call."""
    pattern = current()
    if pattern is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **others
        )
    unknown = sorted(name for name, x in others.items() if x is not None and name not in WITHOUT_EFFECT)
    if unknown:
        raise UnknownAttention(f"its attention depends on {', '.join(unknown)}")
    if attention_mask is not None:
        raise UnknownAttention("it makes a mask of its own")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise UnknownAttention("its layers have no numbers")
    asked = _asked.get()
    if asked is not None:
        asked.window_of_layer[layer] = sliding_window
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return pattern.attend(layer, query, key, value, scaling, sliding_window), None


def _mask(*arguments: Any, local_size: int | None = None, **options: Any) -> Tensor | None:
    """The library's mask for `sdpa`; none where a pattern is active, since it knows who attends to whom."""
    if current() is None:
        return sdpa_mask(*arguments, local_size=local_size, **options)
    asked = _asked.get()
    if asked is not None and local_size:  # some configurations write "none" as 0
        asked.masked.add(local_size)
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
