"""The policy: a causal language model and its tokenizer, from a folder, the hub, or the built-in configuration.

Shapes: B sequences, S positions (prompt and completion, padded), R rows being decoded, N packed tokens, H hidden size,
V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dinghai.config.settings import ModelSettings
from dinghai.errors import InputError
from dinghai.files import write_atomically
from dinghai.policy.builtin import build_model, build_tokenizer
from dinghai.policy.prepare import (
    add_adapters,
    check_causal,
    stop_guessing_padding,
    switch_off_dropout,
    switch_on_checkpointing,
)
from dinghai.policy.pretrained import load_pretrained, without_progress_bars
from dinghai.policy.reading import PADDED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Policy:
    """A causal language model, seen as backbone and head.

    The two are used apart, so that logits are made only for completion tokens. Some architectures do more between
    hidden state and logits than one linear layer (a scale, a soft cap); for those `hidden` gives whole logits and
    `to_logits` passes them on: `factored` tells which.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device, adapters: Any = None) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self._adapters = adapters
        self.backbone = _backbone_of(model)
        self._head = model.get_output_embeddings()
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.factored = self._head_is_the_last_word()
        self.reading = PADDED  # how it reads sequences: packed where `choose_reading` has found that it can
        self._checkpointed = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.training]
        # What the architecture calls the memory of the tokens that it has read.
        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in names else "past_key_values"

    @property
    def context(self) -> int:
        """Longest prompt plus completion, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**20)

    @property
    def end_ids(self) -> set[int]:
        """Token ids that end a completion."""
        ids = self.model.generation_config.eos_token_id
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        return {*ids, self.tokenizer.eos_token_id} - {None}

    @property
    def pad_id(self) -> int:
        """Any valid id, since padding is never looked at; not the model's own, which the library warns about."""
        return 1 if getattr(self.model.config.get_text_config(), "pad_token_id", None) == 0 else 0

    @property
    def head_weight(self) -> nn.Parameter | None:
        """The head as one matrix [V, H]; None where the logits are more than its product with the hidden state."""
        head = self._head
        plain = self.factored and type(head) is nn.Linear and head.bias is None
        return head.weight if plain else None

    def hidden(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
        """Reads whole sequences: the last hidden state of every position, [B, S, H].

        position_ids_BS: each token's place in its sequence, where it is not its place in the row
        """
        inputs = {"input_ids": input_ids_BS, "use_cache": False}
        if position_ids_BS is not None:
            inputs["position_ids"] = position_ids_BS
        if self.factored:
            return self.backbone(**inputs).last_hidden_state
        return self.model(**inputs).logits

    def decode(self, input_ids_RS: Tensor, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
        """Reads the next tokens of sequences whose beginnings are in `cache` (None: there are none yet).

        Returns the logits after the last of them, [R, V], and the cache, longer by S.
        """
        if cache is not None and self._cache_name == "cache_params":  # a state, in which no padding is left to hide
            inputs.pop("attention_mask", None)
        inputs |= {"input_ids": input_ids_RS, "use_cache": True, self._cache_name: cache}
        with self.checkpointing_paused():
            if self.factored:
                output = self.backbone(**inputs)
                logits_RV = self._head(output.last_hidden_state[:, -1])
            else:
                output = self.model(**inputs, logits_to_keep=1)
                logits_RV = output.logits[:, -1]
        return logits_RV, getattr(output, self._cache_name, None)

    def to_logits(self, hidden_NH: Tensor) -> Tensor:
        """The head: [N, H] -> [N, V]."""
        return self._head(hidden_NH) if self.factored else hidden_NH

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of prompts, in the tokenizer's chat template where it has one."""
        if not self.tokenizer.chat_template:
            end = self.tokenizer.eos_token_id
            # Some tokenizers close every text with the end token; a prompt is not at its end.
            return [ids[:-1] if ids[1:] and ids[-1] == end else ids for ids in self.tokenizer(texts)["input_ids"]]
        chats = [[{"role": "user", "content": text}] for text in texts]
        return list(self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False))

    def text(self, token_ids: list[int]) -> str:
        """The text of a completion, without its end token."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The model as it was before its adapters."""
        if self._adapters is None:
            yield
        else:
            with self._adapters.disable_adapter():
                yield

    @property
    def has_adapters(self) -> bool:
        return self._adapters is not None

    def frozen_copy(self) -> Policy:
        """A copy that is never trained: the reference policy."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        frozen = Policy(model, self.tokenizer, self.device)
        frozen.reading = self.reading
        return frozen

    def save(self, folder: Path) -> None:
        """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads; adapters are merged, and kept beside it.

        A folder of that name is replaced only when the new one is complete.
        """
        aside, before = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
        for leftover in (aside, before):
            shutil.rmtree(leftover, ignore_errors=True)
        model = self.model
        with without_progress_bars():
            if self._adapters is not None:
                self._adapters.save_pretrained(aside / "adapter")
                model = copy.deepcopy(self._adapters).merge_and_unload()
            model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
        if folder.exists():
            folder.rename(before)
        aside.rename(folder)
        shutil.rmtree(before, ignore_errors=True)

    def save_tokenizer(self, file: Path) -> None:
        """Writes the tokenizer alone, for whoever looks at a run that has no model yet; a slow one has no such file."""
        if getattr(self.tokenizer, "is_fast", False):
            write_atomically(file, self.tokenizer.backend_tokenizer.to_str())

    @contextlib.contextmanager
    def checkpointing_paused(self) -> Iterator[None]:
        """Checkpointed layers refuse to keep a cache; nothing needs a gradient while decoding."""
        for layer in self._checkpointed:
            layer.training = False
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = True

    def _head_is_the_last_word(self) -> bool:
        """Whether backbone and head alone give the model's own logits, tried on three tokens."""
        if self._head is None or self.backbone is None:
            return False
        probe = torch.arange(3, device=self.device)[None] % self.vocabulary
        with torch.no_grad():
            apart = self._head(self.backbone(input_ids=probe, use_cache=False).last_hidden_state)
            whole = self.model(input_ids=probe, use_cache=False).logits
        return apart.shape == whole.shape and torch.equal(apart, whole.to(apart.dtype))


def load_policy(settings: ModelSettings, seed: int) -> Policy:
    """Builds or loads the policy, with dropout off (it would make the ratio differ from 1 before any update)."""
    device = choose_device(settings.device)
    if settings.path is None:
        tokenizer: Any = build_tokenizer(settings.context)
        model: Any = build_model(settings, tokenizer, seed).to(DTYPES[settings.dtype])
    else:
        model, tokenizer = load_pretrained(settings.path, DTYPES[settings.dtype])
    model = model.to(device).eval()
    switch_off_dropout(model)
    stop_guessing_padding(model)
    check_causal(model, device)
    adapters = add_adapters(model, settings.lora, seed) if settings.lora.rank else None
    if settings.gradient_checkpointing:
        switch_on_checkpointing(model)
    return Policy(model, tokenizer, device, adapters)


def choose_device(name: str) -> torch.device:
    """The device of the run."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError('model.device is "cuda", but no CUDA device is found: use "auto" or "cpu"')
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _backbone_of(model: Any) -> Any:
    """The part of the model that ends in hidden states; None where the library does not name one."""
    for name in ("get_decoder", "base_model"):
        part = getattr(model, name, None)
        part = part() if name == "get_decoder" and part is not None else part
        if part is not None and part is not model:
            return part
    return None


def check_context(policy: Policy, prompt_ids: list[int], prompt_id: str, max_new_tokens: int) -> None:
    """Refuses a prompt that the model cannot read, or that leaves no room for its completion."""
    if not prompt_ids:
        raise InputError(f"prompt {prompt_id!r} has no tokens: the model needs at least one to start from")
    if len(prompt_ids) + max_new_tokens > policy.context:
        raise InputError(
            f"prompt {prompt_id!r} has {len(prompt_ids)} tokens; with rollout.max_new_tokens = {max_new_tokens} that "
            f"is more than the model's context of {policy.context}: shorten it or lower rollout.max_new_tokens"
        )
    if max(prompt_ids) >= policy.vocabulary:
        raise InputError(
            f"prompt {prompt_id!r} has token {max(prompt_ids)}, but the model knows {policy.vocabulary}: its tokenizer "
            "is not the one that it was trained with"
        )
