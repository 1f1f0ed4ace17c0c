"""Proves that packed sequences with shared prompts give the log-probs and gradients of padded ones, for many
architectures and ways to train them, and that an architecture that does not allow it is read as before and says why.

Run: pytest tests/models/test_reading.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import CONFIGS, CONTEXT, HEADS, LLAMA, SMALL, load_tiny, random_ids, save_tiny
from torch import Tensor

from dinghai.config.settings import LoraSettings, ModelSettings
from dinghai.policy import reading as reading_module
from dinghai.policy.attention import NAME, current, install
from dinghai.policy.critic import Critic
from dinghai.policy.model import Policy, load_policy
from dinghai.policy.reading import PADDED, Reading, choose_reading
from dinghai.policy.scoring import TokenSequence, read, score

PACKED, SHARED = Reading(packed=True, shared_prompts=False), Reading(packed=True, shared_prompts=True)
NEVER = "sequences are padded and prompts are not shared: "

MORE_CONFIGS: dict[str, Callable[[], Any]] = {
    "phi": lambda: tf.PhiConfig(**SMALL, **HEADS),
    "opt": lambda: tf.OPTConfig(
        **SMALL, ffn_dim=48, num_attention_heads=4, max_position_embeddings=CONTEXT, word_embed_proj_dim=32
    ),
    "qwen2-moe": lambda: tf.Qwen2MoeConfig(
        **LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "deepseek-v3": lambda: tf.DeepseekV3Config(  # its values are narrower than its keys
        **{**LLAMA, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "llama-dynamic": lambda: tf.LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "falcon-alibi": lambda: tf.FalconConfig(**SMALL, num_attention_heads=4, alibi=True),
}
DECLINED = {
    "gemma2": "a Gemma2ForCausalLM computes its attention in its own way",  # a soft cap
    "gpt-oss": "a GptOssForCausalLM computes its attention in its own way",  # sinks
    "bloom": "a BloomForCausalLM computes its attention in its own way",  # distances in place of positions
    "falcon-alibi": "a FalconForCausalLM computes its attention in its own way",
    "mamba": "a MambaForCausalLM computes its attention in its own way",  # none
    "llama4": "a Llama4ForCausalLM has layers of chunked_attention, in which neighbours in a row would meet",
    "qwen3.5-linear": "a Qwen3_5ForCausalLM has layers of linear_attention, in which neighbours in a row would meet",
    "lfm2-convolution": "a Lfm2ForCausalLM has layers of conv, in which neighbours in a row would meet",
    "llama-dynamic": ("a LlamaForCausalLM's positions depend on the longest sequence of a batch (rope_type 'dynamic')"),
}
PACKABLE = [n for n in (*CONFIGS, *MORE_CONFIGS) if n not in DECLINED and n not in {"falcon-mamba", "qwen2-tied"}]


def make_sequences(*groups: tuple[int, tuple[int, ...]], seed: int = 3) -> list[TokenSequence]:
    """Sequences with prompts and completions of the given lengths, those of a prompt one after the other."""
    g = torch.Generator().manual_seed(seed)
    sequences = []
    for prompt_length, lengths in groups:
        prompt = random_ids(g, prompt_length)
        sequences += [TokenSequence(list(prompt), random_ids(g, n)) for n in lengths]
    return sequences


# Longer and shorter than the sliding windows of 8; prompts and completions of a single token; two prompts of one
# length; and one prompt that comes again later.
SEQUENCES = make_sequences((13, (12, 1, 17)), (1, (5, 2)), (5, (30, 30)), (13, (4, 9)), (7, (1,)))
SEQUENCES.append(TokenSequence(SEQUENCES[0].prompt_ids, [7, 8, 9]))


def load(name: str, folder_of: Callable[[str], Path], tmp_path: Path, **settings: Any) -> Policy:
    folder = folder_of(name) if name in CONFIGS else save_tiny(tmp_path / name, MORE_CONFIGS[name]())
    return load_tiny(folder, **settings)


def numbers(
    policy: Policy, reading: Reading, sequences: list[TokenSequence], entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """logp_N, and the gradient of a weighted sum of them, of all that is trained."""
    policy.reading = reading
    logp_N, entropy_N = score(policy, sequences, temperature=0.7, entropy_gradient=entropy)
    weight_N = torch.linspace(-1, 2, len(logp_N))
    total = (logp_N * weight_N).sum() + (entropy_N.sum() if entropy else 0.0)
    gradients = torch.autograd.grad(total, list(policy.trainable().values()), allow_unused=True)
    return logp_N.detach(), torch.cat([g.flatten().float() for g in gradients if g is not None])


def distance(x: Tensor, right: Tensor) -> float:
    return float((x.float() - right.float()).norm() / right.float().norm())


def assert_all_readings_agree(
    policy: Policy, sequences: list[TokenSequence], tolerance: float = 1e-6, entropy: bool = False
) -> None:
    logp_N, gradient = numbers(policy, PADDED, sequences, entropy)
    for reading in (PACKED, SHARED):
        chosen, left_out = choose_reading(policy, reading.packed, reading.shared_prompts)
        assert (chosen, left_out) == (reading, [])
        packed_logp_N, packed_gradient = numbers(policy, reading, sequences, entropy)
        assert distance(packed_logp_N, logp_N) <= tolerance
        assert distance(packed_gradient, gradient) <= tolerance
    assert current() is None


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_and_shared_give_the_padded_numbers(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = load(name, tiny_folder, tmp_path)
    assert_all_readings_agree(policy, SEQUENCES)


@pytest.mark.parametrize("name", DECLINED)
def test_what_does_not_allow_it_is_read_as_before_and_says_why(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = load(name, tiny_folder, tmp_path)
    with torch.no_grad():
        before_N, _ = score(policy, SEQUENCES, 1.0)
        assert choose_reading(policy, packing=True, shared_prompts=True) == (PADDED, [NEVER + DECLINED[name]])
        assert torch.equal(score(policy, SEQUENCES, 1.0)[0], before_N)


def test_the_built_in_model() -> None:
    policy = load_policy(ModelSettings(hidden_size=32, heads=4, layers=2, device="cpu"), seed=0)
    assert_all_readings_agree(policy, SEQUENCES, entropy=True)


@pytest.mark.parametrize(
    "settings",
    [{"gradient_checkpointing": True}, {"lora": LoraSettings(rank=4)}],
    ids=["checkpointing", "adapters"],
)
@pytest.mark.parametrize("name", ["qwen2-tied", "mistral-sliding"])
def test_ways_to_train(name: str, settings: dict[str, Any], tiny_folder: Callable[[str], Path]) -> None:
    """Checkpointed layers are computed anew in the backward pass, and ask the same pattern there."""
    policy = load_tiny(tiny_folder(name), **settings)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():  # adapters start as nothing: their gradients would be nothing, too
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=g), alpha=0.02)
    assert_all_readings_agree(policy, SEQUENCES)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "qwen3-moe"])
def test_bfloat16(name: str, tiny_folder: Callable[[str], Path]) -> None:
    assert_all_readings_agree(load_tiny(tiny_folder(name), dtype="bfloat16"), SEQUENCES, tolerance=0.03)


@pytest.mark.parametrize(
    "groups",
    [
        ((6, (5,)),),
        ((1, (1,)),),
        ((4, (1, 1)), (2, (1,))),
        ((3, (4,)), (4, (4,)), (5, (4,))),
        ((9, (2, 7, 2, 7)),),
    ],
    ids=["one completion", "one token each", "completions of one token", "no prompt twice", "one prompt"],
)
def test_small_batches(groups: tuple[tuple[int, tuple[int, ...]], ...], tiny_folder: Callable[[str], Path]) -> None:
    assert_all_readings_agree(load_tiny(tiny_folder("qwen3")), make_sequences(*groups))


def test_a_packed_prompt_is_read_once(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("qwen3"))
    policy.reading, _ = choose_reading(policy, packing=True, shared_prompts=True)
    seen: list[int] = []
    policy.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    read(policy, make_sequences((20, (6, 1, 4)), (5, (3,))))
    assert seen == [20 + 5 + 0 + 3 + 5 + 2]


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_critic_and_the_reference_read_as_the_policy_does(name: str, tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder(name))
    padded = Critic(policy)
    policy.reading, _ = choose_reading(policy, packing=True, shared_prompts=True)
    critic, reference = Critic(policy), policy.frozen_copy()
    assert reference.reading == policy.reading == (PADDED if name == "gemma2" else SHARED)
    torch.testing.assert_close(score(reference, SEQUENCES, 1.0)[0], score(policy, SEQUENCES, 1.0)[0].detach())
    with torch.no_grad():
        padded.head.weight.normal_()
        critic.head.weight.copy_(padded.head.weight)
    torch.testing.assert_close(critic.values(SEQUENCES), padded.values(SEQUENCES), rtol=1e-5, atol=1e-5)


def test_nothing_is_packed_unasked(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"))
    assert choose_reading(policy, packing=False, shared_prompts=False) == (PADDED, [])
    assert policy.model.config._attn_implementation == "sdpa"


def test_outside_of_a_pattern_nothing_changes(tiny_folder: Callable[[str], Path]) -> None:
    """Bit for bit: the library's own attention, with its masks."""
    ids, mask = torch.tensor([[5, 6, 7, 8], [1, 1, 9, 4]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    for name in ("mistral-sliding", "gemma3", "gpt2"):
        policy = load_tiny(tiny_folder(name))
        with torch.no_grad():
            before = policy.model(ids, attention_mask=mask).logits
            choose_reading(policy, packing=True, shared_prompts=True)
            assert policy.model.config._attn_implementation == NAME
            assert torch.equal(policy.model(ids, attention_mask=mask).logits, before)


# --- what the trial on short sequences finds -------------------------------------------------------------------------


def refusal(policy: Policy) -> str:
    chosen, (sentence,) = choose_reading(policy, packing=True, shared_prompts=True)
    assert chosen == PADDED
    return sentence.removeprefix(NEVER)


def test_positions_that_a_model_does_not_heed(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_tiny(tiny_folder("gpt2"))
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda ids, _=None: hidden(ids))
    assert refusal(policy).startswith("a GPT2LMHeadModel gives other states when it is tried (by ")


def test_layers_that_do_not_ask(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"))
    policy.model.config.num_hidden_layers = 3
    assert refusal(policy) == "of the 3 layers of a LlamaForCausalLM only 2 are plain attention"


def test_windows_that_layers_do_not_tell(tiny_folder: Callable[[str], Path]) -> None:
    """Such a window would only show in sequences longer than those that are tried."""
    policy = load_tiny(tiny_folder("mistral-sliding"))
    assert install(policy.model) is None
    for layer in policy.model.model.layers:
        layer.self_attn.config = copy.copy(layer.self_attn.config)
        layer.self_attn.config.sliding_window = None
    assert refusal(policy) == "the layers of a MistralForCausalLM do not say how far their attention reaches"


def test_what_a_pattern_does_not_know(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"))
    attention = policy.model.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *a, **k: forward(*a, s_aux=torch.ones(4), **k)
    assert refusal(policy) == "a LlamaForCausalLM cannot be packed: its attention depends on s_aux"


def test_a_model_that_fails(tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_tiny(tiny_folder("llama"))

    def pack(*_: Any) -> Any:
        raise ValueError("no such thing\nand more")

    monkeypatch.setattr(reading_module, "pack", pack)
    assert refusal(policy) == "a LlamaForCausalLM fails when it is tried (ValueError: no such thing)"
