"""The built-in model: a small GPT-2 over bytes, made from a configuration, so that nothing has to be downloaded.

One token is one byte of UTF-8, so it takes any text; positions are learned, which suits the fixed columns of the
built-in task.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dinghai.config.settings import ModelSettings

END, PAD = "<|end|>", "<|pad|>"


def build_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: ids 0-255 are bytes, then the end and the padding token."""
    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(byte_symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=context, padding_side="right"
    )


def build_model(settings: ModelSettings, tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights drawn from `seed`; dropout is off, since it would make the ratio differ from 1."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=settings.hidden_size,
        n_layer=settings.layers,
        n_head=settings.heads,
        n_inner=2 * settings.hidden_size,
        n_positions=settings.context,
        activation_function="gelu_pytorch_tanh",  # the same function as GPT-2's, in one operation
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)
