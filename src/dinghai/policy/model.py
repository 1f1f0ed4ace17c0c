"""The policy: a causal language model and its tokenizer, from a folder, the hub, or the built-in configuration.

Shapes: B sequences, S positions (prompt and completion, padded), N packed tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinghai.config.settings import LoraSettings, ModelSettings
from dinghai.errors import InputError, RunFailed
from dinghai.policy.builtin import build_model, build_tokenizer

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
        self._backbone = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self._head = model.get_output_embeddings()
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.factored = self._head_is_the_last_word()

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
        return 1 if self.model.config.get_text_config().pad_token_id == 0 else 0

    def hidden(self, input_ids_BS: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
        """Runs the backbone: last hidden states [B, S, H], and the cache of keys and values if `use_cache` asks."""
        inputs.setdefault("use_cache", False)
        if self.factored:
            output = self._backbone(input_ids=input_ids_BS, **inputs)
            return output.last_hidden_state, output.past_key_values
        output = self.model(input_ids=input_ids_BS, **inputs)
        return output.logits, output.past_key_values

    def to_logits(self, hidden_NH: Tensor) -> Tensor:
        """The head: [N, H] -> [N, V]."""
        return self._head(hidden_NH) if self.factored else hidden_NH

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; tied ones once."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of prompts, in the tokenizer's chat template where it has one."""
        if not self.tokenizer.chat_template:
            return list(self.tokenizer(texts)["input_ids"])
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
        return Policy(model, self.tokenizer, self.device)

    def save(self, folder: Path) -> None:
        """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads; adapters are merged, and kept beside it."""
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        model = self.model
        if self._adapters is not None:
            self._adapters.save_pretrained(aside / "adapter")
            model = copy.deepcopy(self._adapters).merge_and_unload()
        model.save_pretrained(aside)
        self.tokenizer.save_pretrained(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)

    def _head_is_the_last_word(self) -> bool:
        """Whether backbone and head alone give the model's own logits, tried on three tokens."""
        if self._head is None:
            return False
        probe = torch.arange(3, device=self.device)[None] % self.vocabulary
        with torch.no_grad():
            hidden = self._backbone(input_ids=probe, use_cache=False).last_hidden_state
            apart = self._head(hidden)
            whole = self.model(input_ids=probe, use_cache=False).logits
        return apart.shape == whole.shape and torch.equal(apart, whole.to(apart.dtype))


def load_policy(settings: ModelSettings, seed: int) -> Policy:
    """Builds or loads the policy, with dropout off (it would make the ratio differ from 1 before any update)."""
    device = choose_device(settings.device)
    if settings.path is None:
        tokenizer = build_tokenizer(settings.context)
        model: Any = build_model(settings, tokenizer, seed).to(DTYPES[settings.dtype])
    else:
        model, tokenizer = _load_pretrained(settings.path, DTYPES[settings.dtype])
    _switch_off_dropout(model)
    model = model.to(device).eval()
    adapters = _add_adapters(model, settings.lora) if settings.lora.rank else None
    if settings.gradient_checkpointing:
        # The library checkpoints only in training mode; with every dropout at 0 the two modes compute the same.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return Policy(model, tokenizer, device, adapters)


def choose_device(name: str) -> torch.device:
    """The device of the run."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError('model.device is "cuda", but no CUDA device is found: use "auto" or "cpu"')
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _load_pretrained(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(path)
    if folder.exists() and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model.path {path!r} holds no *.safetensors weights: name a folder that `save_pretrained` wrote"
        )
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise InputError(f"model.path {path!r} does not exist")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.path {path!r} cannot be loaded as a causal language model: {reason}") from error
    return model, tokenizer


def _switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _add_adapters(model: Any, lora: LoraSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("model.lora.rank needs peft: pip install 'dinghai[lora]'") from error
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets or "all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"model.lora.targets {lora.targets}: {str(error).splitlines()[0]}") from error


def check_context(policy: Policy, prompt_ids: list[int], prompt_id: str, max_new_tokens: int) -> None:
    """Refuses a prompt that leaves no room for its completion."""
    if len(prompt_ids) + max_new_tokens > policy.context:
        raise InputError(
            f"prompt {prompt_id!r} has {len(prompt_ids)} tokens; with rollout.max_new_tokens = {max_new_tokens} that is "
            f"more than the model's context of {policy.context}: shorten it or lower rollout.max_new_tokens"
        )
    if not prompt_ids:
        raise RunFailed(f"prompt {prompt_id!r} has no tokens: the model needs at least one to start from")
