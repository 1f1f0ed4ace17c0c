"""Making a loaded model fit to be trained here: causal, without dropout, with checkpoints and adapters where asked."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dinghai.config.settings import LoraSettings
from dinghai.errors import InputError
from dinghai.policy.attention import checkpoint_contexts


def check_causal(model: Any, device: torch.device) -> None:
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


def switch_off_dropout(model: nn.Module) -> None:
    """Sets every dropout rate to 0, in modules and in the configuration that some layers read it from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in vars(holder).items() if holder is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(holder, name, 0.0)


def stop_guessing_padding(model: nn.Module) -> None:
    """Padding here is always to the right of what is read; the library would warn of every sequence that ends so."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _say_nothing  # type: ignore[assignment]


def _say_nothing(*_: Any) -> None:
    pass


def switch_on_checkpointing(model: Any) -> None:
    """Layers recompute their activations in the backward pass.

    The library does so only for layers in training mode. What is inside them stays in evaluation mode, so that nothing
    random (layer drop, jitter of a router) comes with it.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise InputError(f"model.gradient_checkpointing: a {type(model).__name__} cannot do it; set it to false")
    options = {"use_reentrant": False, "context_fn": checkpoint_contexts}
    if hasattr(model, "activation_checkpointing_enable"):  # the newer name
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for layer in layers:
        layer.training = True


def add_adapters(model: Any, lora: LoraSettings, seed: int) -> Any:
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
