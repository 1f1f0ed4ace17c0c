"""Tiny models of many architectures, with random weights, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from dinghai.config.settings import ModelSettings
from dinghai.policy.builtin import build_tokenizer
from dinghai.policy.model import Policy, load_policy
from dinghai.policy.pretrained import without_progress_bars
from dinghai.policy.scoring import TokenSequence

END, PAD, CONTEXT, VOCABULARY = 256, 257, 256, 300
IDS = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, **IDS}
HEADS = {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": CONTEXT}
LLAMA = {**SMALL, **HEADS, "num_key_value_heads": 2}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
LINEAR = {f"linear_{k}": v for k, v in {"key_head_dim": 8, "value_head_dim": 8, "num_key_heads": 2}.items()}

# Sliding windows are 8: shorter than the prompts and completions of the tests.
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **IDS),
    "llama": lambda: tf.LlamaConfig(**LLAMA),
    "qwen2-tied": lambda: tf.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": lambda: tf.Qwen3Config(**LLAMA, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**GEMMA),
    "gemma3": lambda: tf.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"]),
    "mistral-sliding": lambda: tf.MistralConfig(**LLAMA, sliding_window=8),
    "phi3": lambda: tf.Phi3Config(**LLAMA),
    "olmo2": lambda: tf.Olmo2Config(**LLAMA),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SMALL, **HEADS),
    "granite": lambda: tf.GraniteConfig(**LLAMA, logits_scaling=3.0),
    "cohere": lambda: tf.CohereConfig(**LLAMA),
    "bloom": lambda: tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **IDS),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(
        **LLAMA, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "gpt-oss": lambda: tf.GptOssConfig(
        **LLAMA,
        head_dim=8,
        num_local_experts=4,
        sliding_window=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        layer_types=["sliding_attention", "full_attention"],
    ),
    "llama4": lambda: tf.Llama4TextConfig(
        **LLAMA, head_dim=8, num_local_experts=2, intermediate_size_mlp=48, attention_chunk_size=8
    ),
    "qwen3.5-linear": lambda: tf.Qwen3_5TextConfig(
        **LLAMA, **LINEAR, head_dim=8, linear_num_value_heads=4, layer_types=["linear_attention", "full_attention"]
    ),
    "lfm2-convolution": lambda: tf.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"]),
    "mamba": lambda: tf.MambaConfig(**SMALL, state_size=8),
    "falcon-mamba": lambda: tf.FalconMambaConfig(**SMALL, state_size=8),
}


def save_tiny(folder: Path, config: Any, sharpness: float = 4.0, seed: int = 0, model_class: Any = None) -> Path:
    """Saves a model of `config` with the byte tokenizer.

    sharpness: factor of the usual random weights, so that distributions are far from uniform and mistakes show
    """
    with torch.random.fork_rng(devices=[]), without_progress_bars():
        torch.manual_seed(seed)
        model = model_class(config) if model_class else tf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(sharpness)
        model.save_pretrained(folder)
        build_tokenizer(CONTEXT).save_pretrained(folder)
    return folder


def load_tiny(folder: Path, **settings: Any) -> Policy:
    return load_policy(ModelSettings(path=str(folder), device="cpu", **settings), seed=0)


def random_ids(generator: torch.Generator, length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=generator).tolist()


def random_sequences(*lengths: tuple[int, int], seed: int = 1) -> list[TokenSequence]:
    """Sequences of random bytes with the given (prompt, completion) lengths."""
    g = torch.Generator().manual_seed(seed)
    return [TokenSequence(random_ids(g, p), random_ids(g, c)) for p, c in lengths]


def random_prompts(*lengths: int, seed: int = 2) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    return [random_ids(g, n) for n in lengths]


@torch.no_grad()
def reference_log_probs(model: Any, sequences: list[TokenSequence], temperature: float = 1.0) -> torch.Tensor:
    """logp_N of the completion tokens from the model's own full logits, one unpadded sequence at a time."""
    parts = []
    for s in sequences:
        logits_SV = model(torch.tensor([s.prompt_ids + s.completion_ids]), use_cache=False).logits[0].float()
        logp_SV = (logits_SV / temperature).log_softmax(-1)
        positions = torch.arange(len(s.completion_ids)) + len(s.prompt_ids) - 1
        parts.append(logp_SV[positions, s.completion_ids])
    return torch.cat(parts)
