"""How a policy reads sequences: padded, or packed into one row, with each prompt read once for its completions.

Shapes: B sequences, S padded positions, M packed positions, N packed completion tokens, H hidden size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dinghai.policy.attention import Asked, UnknownAttention, attending, install, watching
from dinghai.policy.packed_attention import PackedAttention
from dinghai.policy.sequences import TokenSequence, pack, pad

if TYPE_CHECKING:
    from dinghai.policy.model import Policy

# (prompt, its completions' lengths): unequal, one of a single token, so that what is mixed up shows.
PROBE = ((5, (3, 6)), (2, (4, 1, 3)), (3, (2,)))
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # relative, in the norm; far above rounding
COARSE_TOLERANCE = 5e-2  # of any other dtype
PLAIN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Reading:
    """How sequences are read.

    packed:         in one row without padding
    shared_prompts: a prompt once for all its completions in the row; needs `packed`
    """

    packed: bool
    shared_prompts: bool


PADDED = Reading(packed=False, shared_prompts=False)


def read_states(
    hidden: Callable[[Tensor, Tensor | None], Tensor],
    sequences: Sequence[TokenSequence],
    reading: Reading,
    pad_id: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The states that predict each completion token, hidden_NH, and those tokens, target_N.

    hidden: (input ids [B, S], position ids [B, S] or None where they count from 0) -> last hidden states [B, S, H]
    """
    if not reading.packed:
        padded = pad(sequences, pad_id, device)
        return hidden(padded.input_ids_BS, None).flatten(0, 1).index_select(0, padded.predict_N), padded.target_N
    packed = pack(sequences, reading.shared_prompts, device)
    with attending(PackedAttention(packed)):
        hidden_MH = hidden(packed.input_ids_M[None], packed.position_ids_M[None])[0]
    return hidden_MH.index_select(0, packed.predict_N), packed.target_N


def choose_reading(policy: Policy, packing: bool, shared_prompts: bool) -> tuple[Reading, list[str]]:
    """How `policy` may read sequences, of what is wanted, and sentences that say what was left out and why.

    Tries packed sequences on a few short ones against padded ones, states and gradients. Where packing is possible
    the model's attention is switched to the one that it needs.
    """
    if not packing:
        return PADDED, []
    wanted = Reading(packed=True, shared_prompts=shared_prompts)
    reason = install(policy.model) or other_than_attention(policy) or _tried(policy, wanted)
    if reason is None:
        return wanted, []
    left_out = "sequences are padded and prompts are not shared" if shared_prompts else "sequences are padded"
    return PADDED, [f"{left_out}: {reason}"]


def other_than_attention(policy: Policy) -> str | None:
    """What the configuration and the modules say of paths between tokens that are not plain attention.

    None, or the end of a sentence. A trial of short sequences would not notice all of it.
    """
    kind, config = type(policy.model).__name__, policy.model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS)
    if others:
        return f"a {kind} has layers of {', '.join(others)}, in which neighbours in a row would meet"
    if any(isinstance(module, nn.Conv1d) for module in policy.model.modules()):
        return f"a {kind} has convolutions, in which neighbours in a row would meet"
    lengthwise = sorted(_rope_types(config) & {"dynamic", "longrope"})
    if lengthwise:
        return f"a {kind}'s positions depend on the longest sequence of a batch (rope_type {lengthwise[0]!r})"
    return None


def _rope_types(config: Any) -> set[str]:
    """All rope types of a configuration: one, or one for each type of layer."""
    found = set()
    pending = [getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)]
    while pending:
        entry = pending.pop()
        if isinstance(entry, Mapping):
            found.add(str(entry.get("rope_type", entry.get("type"))))
            pending.extend(entry.values())
    return found


def _tried(policy: Policy, reading: Reading) -> str | None:
    """Reads short sequences both ways. Returns why they may not be packed, if so."""
    kind = type(policy.model).__name__
    sequences = _probe_sequences(policy.vocabulary)
    try:
        padded = _states_and_gradient(policy, sequences, PADDED)
        with watching() as asked:
            packed = _states_and_gradient(policy, sequences, reading)
    except UnknownAttention as error:
        return f"a {kind} cannot be packed: {error}"
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an architecture objects to: it can then be read as before
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"a {kind} fails when it is tried ({type(error).__name__}: {line[:200]})"
    config, layers = policy.model.config.get_text_config(), len(asked.window_of_layer)
    if layers != config.num_hidden_layers:
        return f"of the {config.num_hidden_layers} layers of a {kind} only {layers} are plain attention"
    if not _windows_agree(config, asked):
        return f"the layers of a {kind} do not say how far their attention reaches"
    tolerance = TOLERANCE.get(policy.model.dtype, COARSE_TOLERANCE)
    for what, one, other in zip(("states", "gradients"), padded, packed, strict=True):
        difference = float((other - one).norm() / one.norm())
        if not difference <= tolerance:
            return f"a {kind} gives other {what} when it is tried (by {difference:.1g})"
    return None


def _windows_agree(config: Any, asked: Asked) -> bool:
    """Whether the sliding windows that layers tell are those that the library's masks would give them."""
    types = getattr(config, "layer_types", None)
    if types is None:
        return asked.told == asked.masked
    right = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    return all(window == right[types[layer]] for layer, window in asked.window_of_layer.items())


def _probe_sequences(vocabulary: int) -> list[TokenSequence]:
    """Sequences in which no token occurs twice, as far as the vocabulary reaches."""
    ids = itertools.cycle(range(vocabulary))
    sequences = []
    for prompt_length, lengths in PROBE:
        prompt = list(itertools.islice(ids, prompt_length))
        sequences += [TokenSequence(prompt, list(itertools.islice(ids, length))) for length in lengths]
    return sequences


def _states_and_gradient(policy: Policy, sequences: list[TokenSequence], reading: Reading) -> tuple[Tensor, Tensor]:
    """The states that predict the completions, and the gradient of their weighted sum for each token of the input."""
    embedded: list[tuple[Tensor, Tensor]] = []

    def leaf(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append((inputs[0], output.detach().requires_grad_()))
        return embedded[0][1].clone()

    hook = policy.model.get_input_embeddings().register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            hidden_NH, _ = read_states(policy.hidden, sequences, reading, policy.pad_id, policy.device)
            weight_NH = torch.linspace(-1, 1, hidden_NH.numel(), device=policy.device).view_as(hidden_NH)
            (input_ids, states), *_ = embedded
            (gradient,) = torch.autograd.grad((hidden_NH.float() * weight_NH).sum(), states)
    finally:
        hook.remove()
    tokens = 1 + max(max(s.prompt_ids + s.completion_ids) for s in sequences)
    gradient_of_token = gradient.new_zeros(tokens, gradient.shape[-1], dtype=torch.float32)
    gradient_of_token.index_add_(0, input_ids.flatten(), gradient.float().flatten(0, 1))
    return hidden_NH.detach().float(), gradient_of_token
