"""The policy: a causal language model and its tokenizer, from a folder, the hub, or the built-in configuration.

Shapes: B sequences, S positions (prompt and completion, padded), R rows being decoded, N packed tokens, H hidden size,
V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dinghai.config.settings import LoraSettings, ModelSettings
from dinghai.errors import InputError
from dinghai.policy.builtin import build_model, build_tokenizer
from dinghai.policy.pretrained import load_pretrained, without_progress_bars

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

    def hidden(self, input_ids_BS: Tensor) -> Tensor:
        """Reads whole sequences: the last hidden state of every position, [B, S, H]."""
        if self.factored:
            return self.backbone(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        return self.model(input_ids=input_ids_BS, use_cache=False).logits

    def decode(self, input_ids_RS: Tensor, cache: Any, **inputs: Any) -> tuple[Tensor, Any]:
        """Reads the next tokens of sequences whose beginnings are in `cache` (None: there are none yet).

        Returns the logits after the last of them, [R, V], and the cache, longer by S.
        """
        if cache is not None and self._cache_name == "cache_params":  # a state, in which no padding is left to hide
            inputs.pop("attention_mask", None)
        inputs |= {"input_ids": input_ids_RS, "use_cache": True, self._cache_name: cache}
        with self._checkpointing_paused():
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
        return Policy(model, self.tokenizer, self.device)

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

    @contextlib.contextmanager
    def _checkpointing_paused(self) -> Iterator[None]:
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
    _switch_off_dropout(model)
    _stop_guessing_padding(model)
    _check_causal(model, device)
    adapters = _add_adapters(model, settings.lora, seed) if settings.lora.rank else None
    if settings.gradient_checkpointing:
        _switch_on_checkpointing(model)
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


def _check_causal(model: Any, device: torch.device) -> None:
    """Refuses a model in which a token is seen by those before it: its log-probs would not be those of sampling."""
    probe = torch.tensor([[1, 2, 3], [1, 2, 4]], device=device)
    with torch.no_grad():
        one, other = model(input_ids=probe, use_cache=False).logits[:, :2].float()
    tolerance = 1e-4 if model.dtype == torch.float32 else 1e-2
    if not torch.allclose(one, other, rtol=tolerance, atol=tolerance):
        raise InputError(
            f"model.path: a {type(model).__name__} is not causal (a token changes what is predicted before it), so it "
            "cannot be sampled from: name a decoder model"
        )


def _switch_off_dropout(model: nn.Module) -> None:
    """Sets every dropout rate to 0, in modules and in the configuration that some layers read it from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in vars(holder).items() if holder is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)


def _stop_guessing_padding(model: nn.Module) -> None:
    """Padding here is always to the right of what is read; the library would warn of every sequence that ends so."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _say_nothing  # type: ignore[assignment]


def _say_nothing(*_: Any) -> None:
    pass


def _switch_on_checkpointing(model: Any) -> None:
    """Layers recompute their activations in the backward pass.

    The library does so only for layers in training mode. What is inside them stays in evaluation mode, so that nothing
    random (layer drop, jitter of a router) comes with it.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise InputError(f"model.gradient_checkpointing: a {type(model).__name__} cannot do it; set it to false")
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the newer name
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for layer in layers:
        layer.training = True


def _add_adapters(model: Any, lora: LoraSettings, seed: int) -> Any:
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
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            # peft tells what it sets right by itself, and uses names that the library has begun to replace.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to|The following .*_pattern keys")
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        if lora.targets:
            raise InputError(f"model.lora.targets {lora.targets}: {reason}") from error
        raise InputError(f"model.lora: {reason}\nname the layers to adapt in model.lora.targets") from error


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
