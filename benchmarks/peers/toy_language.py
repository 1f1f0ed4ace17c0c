"""A made-up language, a small Qwen3 that has learned to speak it, prompts in it, and a reward.

A text is words of two kinds, `sea…` and `sky…`, each of Zipfian frequency. The kind mostly stays from
one word to the next, so completions differ in how many of their words are of the sea: that share is the reward, which
rises within tens of steps. A text ends after each word with the same small probability, so completions have many
lengths. Everything follows from a seed.

Shapes: B texts, S words of a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, END = 0, 1
KIND_CHANGES = 0.15  # from one word to the next
MEAN_LENGTH = 56  # of a text that nothing cuts short
MODEL = "model"
# Files of prompts, and how many words they have, from … to.
PROMPTS = {"long.jsonl": (100, 128), "short.jsonl": (16, 24)}


@dataclass(frozen=True)
class Size:
    """Of the language, its model, and how long the model is taught."""

    words_of_a_kind: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    steps: int


WHOLE = Size(words_of_a_kind=4095, width=256, layers=4, heads=8, feed_forward=768, steps=100)  # 5.2 M parameters
SMALL = Size(words_of_a_kind=255, width=64, layers=2, heads=4, feed_forward=192, steps=150)


def sea_share(completions: Sequence[str], **_: Any) -> list[float]:
    """The reward: the words of the sea among a completion's words, in per cent; 0 for an empty completion."""
    split = [text.split() for text in completions]
    return [100 * sum(w.startswith("sea") for w in words) / len(words) if words else 0.0 for words in split]


def make(folder: Path, prompts: int, size: Size) -> None:
    """Writes `folder`/model, which has learned the language, and the files of prompts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(size)
    model = build_model(size)
    teach(model, size)
    model.save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    random = np.random.default_rng(1)
    for name, (fewest, most) in PROMPTS.items():
        texts = [
            tokenizer.decode(word_ids(random, size, int(random.integers(fewest, most + 1)))) for _ in range(prompts)
        ]
        lines = [json.dumps({"question": text, "answer": "none"}) + "\n" for text in texts]
        (folder / name).write_text("".join(lines), encoding="utf-8")


def build_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    words = [f"{kind}{i}" for kind in ("sea", "sky") for i in range(size.words_of_a_kind)]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def build_model(size: Size) -> Qwen3ForCausalLM:
    """A Qwen3 whose embedding is the head as well."""
    config = Qwen3Config(
        vocab_size=2 + 2 * size.words_of_a_kind,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        head_dim=size.width // size.heads,
        intermediate_size=size.feed_forward,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def teach(model: Qwen3ForCausalLM, size: Size) -> None:
    """Supervised learning on texts of the language, one after the other; linear warm-up and decay."""
    random, steps = np.random.default_rng(0), size.steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 10, (steps + 1 - step) / (0.5 * steps))
        ids_BS = torch.tensor(np.stack([word_ids(random, size, 192, 1 / MEAN_LENGTH) for _ in range(8)]))
        model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def word_ids(random: np.random.Generator, size: Size, length: int, end: float = 0.0) -> np.ndarray:
    """[length] ids: words, and with probability `end` after each the end of the text, behind which another begins."""
    rank = np.exp(random.random(length) * math.log(size.words_of_a_kind)).astype(int) - 1  # density 1/rank
    ends = random.random(length) < end
    kind = (random.integers(2) + np.cumsum(random.random(length) < KIND_CHANGES)) % 2
    return np.where(ends, END, 2 + kind * size.words_of_a_kind + rank)
