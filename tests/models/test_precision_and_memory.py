"""Proves bfloat16, gradient checkpointing and adapters: the same numbers where they must be the same, and only the
weights that training may change have gradients.

Run: pytest tests/models/test_precision_and_memory.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import load_tiny, random_prompts, random_sequences, reference_log_probs, save_tiny
from transformers import FalconConfig, LlamaForCausalLM, OPTConfig

from dinghai.config.settings import LoraSettings, ModelSettings
from dinghai.errors import InputError
from dinghai.policy.critic import Critic
from dinghai.policy.model import Policy, load_policy
from dinghai.policy.scoring import TokenSequence, score
from dinghai.rollout.engine import Sampling
from dinghai.rollout.local import LocalEngine

SEQUENCES = random_sequences((4, 9), (7, 5), (2, 12))
LORA = LoraSettings(rank=4, alpha=8.0)


def log_probs(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return score(policy, SEQUENCES, 1.0)[0]


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    logp_N, entropy_N = score(policy, SEQUENCES, 0.8, entropy_gradient=True)
    (logp_N.sum() + 0.1 * entropy_N.sum()).backward()
    return {name: p.grad for name, p in policy.trainable().items()}


def stir_adapters(policy: Policy) -> None:
    """Adapters start as nothing (B = 0); this makes them something."""
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=g))


# --- bfloat16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_bfloat16(name: str, tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder(name), dtype="bfloat16")
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    logp_N = log_probs(policy)
    assert logp_N.dtype == torch.float32
    torch.testing.assert_close(logp_N, reference_log_probs(policy.model, SEQUENCES), atol=0.2, rtol=0.05)
    assert torch.equal(logp_N, log_probs(policy)), "two scorings differ: the ratio would not start at 1"
    assert all(g is not None and g.isfinite().all() for g in gradients(policy).values())
    values = Critic(policy).values(SEQUENCES)
    assert values.dtype == torch.float32


def test_the_builtin_model_in_bfloat16() -> None:
    policy = load_policy(ModelSettings(dtype="bfloat16", hidden_size=32, heads=4), seed=0)
    assert policy.factored
    LocalEngine(policy, 4).generate(random_prompts(4), 2, Sampling(max_new_tokens=3), seed=0)


# --- gradient checkpointing ------------------------------------------------------------------------------------------


def jittery_mixtral() -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=4,
        router_jitter_noise=0.3,
        attention_dropout=0.1,
    )


# Configurations whose layers do something random in training mode, each in a way of its own.
RANDOM_WHEN_TRAINING: dict[str, Callable[[], Any]] = {
    "falcon reads dropout from the configuration": lambda: FalconConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.2
    ),
    "opt leaves out layers": lambda: OPTConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
        dropout=0.1,
        layerdrop=0.5,
    ),
    "mixtral shakes its router": jittery_mixtral,
}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "qwen3-moe", "qwen3.5-linear"])
def test_checkpointing_changes_no_gradient(name: str, tiny_folder: Callable[[str], Path]) -> None:
    plain = load_tiny(tiny_folder(name))
    checkpointed = load_tiny(tiny_folder(name), gradient_checkpointing=True)
    assert torch.equal(log_probs(plain), log_probs(checkpointed))
    forwards = _count_forwards(checkpointed)
    mine, right = gradients(checkpointed), gradients(plain)
    assert forwards[0] == 4, "two layers, each run again in the backward pass"
    assert mine.keys() == right.keys()
    for parameter, gradient in right.items():
        torch.testing.assert_close(mine[parameter], gradient, msg=parameter)


def _count_forwards(policy: Policy) -> list[int]:
    """Counts how often the layers' own modules run."""
    count = [0]

    def note(*_: Any) -> None:
        count[0] += 1

    for layer in policy._checkpointed:
        next(layer.children()).register_forward_hook(note)
    return count


@pytest.mark.parametrize("case", RANDOM_WHEN_TRAINING)
def test_checkpointing_brings_nothing_random(case: str, tmp_path: Path) -> None:
    policy = load_tiny(save_tiny(tmp_path, RANDOM_WHEN_TRAINING[case]()), gradient_checkpointing=True)
    with torch.no_grad():
        first, _ = score(policy, SEQUENCES, 1.0, one_pass=False)  # the head as it is with a gradient
    for _ in range(4):
        logp_N, _ = score(policy, SEQUENCES, 1.0)
        assert torch.equal(logp_N, first)
    torch.testing.assert_close(first, reference_log_probs(policy.model, SEQUENCES), atol=1e-5, rtol=0)


def test_checkpointed_models_decode(tiny_folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    """The library gives a checkpointed layer no cache; the engine needs one."""
    prompts, sampling = random_prompts(4, 7), Sampling(max_new_tokens=6)
    tokens = [
        [c.token_ids for group in LocalEngine(policy, 8).generate(prompts, 3, sampling, seed=0) for c in group]
        for policy in (load_tiny(tiny_folder("llama"), gradient_checkpointing=flag) for flag in (False, True))
    ]
    assert tokens[0] == tokens[1]
    assert capfd.readouterr().err == ""


def test_checkpointing_goes_on_after_decoding(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"), gradient_checkpointing=True)
    LocalEngine(policy, 8).generate(random_prompts(4), 3, Sampling(max_new_tokens=3), seed=0)
    forwards = _count_forwards(policy)
    gradients(policy)
    assert forwards[0] == 4


def test_a_model_that_cannot_checkpoint_says_so(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="a LlamaForCausalLM cannot do it"):
        load_tiny(tiny_folder("llama"), gradient_checkpointing=True)


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2-tied", "qwen3-moe", "cohere"])
def test_only_adapters_are_trained(name: str, tiny_folder: Callable[[str], Path]) -> None:
    base, policy = load_tiny(tiny_folder(name)), load_tiny(tiny_folder(name), lora=LORA)
    assert policy.has_adapters
    assert policy.factored == base.factored
    assert all("lora_" in parameter for parameter in policy.trainable())
    assert torch.equal(log_probs(policy), log_probs(base)), "adapters start as nothing"

    assert all(g is not None for g in gradients(policy).values())
    assert all(p.grad is None for n, p in policy.model.named_parameters() if "lora_" not in n)

    stir_adapters(policy)
    assert not torch.allclose(log_probs(policy), log_probs(base))
    with policy.without_adapters():
        assert torch.equal(log_probs(policy), log_probs(base)), "the reference is the model before its adapters"


def test_adapters_are_a_function_of_the_seed(tiny_folder: Callable[[str], Path]) -> None:
    settings = ModelSettings(path=str(tiny_folder("llama")), lora=LORA, device="cpu")
    torch.manual_seed(7)
    one = load_policy(settings, 3).trainable()
    torch.manual_seed(8)
    same, other = load_policy(settings, 3).trainable(), load_policy(settings, 4).trainable()
    assert all(torch.equal(p, same[n]) for n, p in one.items())
    assert not all(torch.equal(p, other[n]) for n, p in one.items())


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_adapters_go_with_the_rest(options: dict[str, Any], tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"), lora=LORA, **options)
    groups = LocalEngine(policy, 8).generate(random_prompts(4), 2, Sampling(max_new_tokens=3), seed=0)
    assert len(groups[0]) == 2
    assert all(g is not None and g.isfinite().all() for g in gradients(policy).values())
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}


def test_the_critic_of_an_adapted_policy_trains_adapters_too(tiny_folder: Callable[[str], Path]) -> None:
    critic = Critic(load_tiny(tiny_folder("llama"), lora=LORA))
    assert {"head.weight", "head.bias"} < critic.trainable().keys()
    assert all("lora_" in name or name.startswith("head.") for name in critic.trainable())


def test_wrong_targets_are_named(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"model.lora.targets \['nope'\]: .*not found"):
        load_tiny(tiny_folder("llama"), lora=LoraSettings(rank=4, targets=["nope"]))


def test_an_architecture_that_peft_cannot_adapt_whole(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"(?s)model.lora: .*out_proj.*model.lora.targets"):
        load_tiny(tiny_folder("falcon-mamba"), lora=LORA)
    policy = load_tiny(tiny_folder("falcon-mamba"), lora=LoraSettings(rank=4, targets=["in_proj"]))
    assert all(g is not None for g in gradients(policy).values())


def test_chosen_targets(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"), lora=LoraSettings(rank=4, targets=["q_proj", "v_proj"]))
    assert len(policy.trainable()) == 2 * 2 * 2  # layers x targets x (A, B)


# --- copies and files ------------------------------------------------------------------------------------------------


def test_a_frozen_copy_stays(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("qwen2-tied"))
    copy, before = policy.frozen_copy(), log_probs(policy)
    assert copy.trainable() == {}
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1)
    assert torch.equal(log_probs(copy), before)
    assert not torch.equal(log_probs(policy), before)


@pytest.mark.parametrize("name", ["gpt2", "qwen2-tied", "gemma3", "qwen3-moe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_what_was_trained(
    name: str, dtype: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = load_tiny(tiny_folder(name), dtype=dtype)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.01)
    policy.save(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    saved, right = again.state_dict(), policy.model.state_dict()
    assert saved.keys() == right.keys()
    assert all(saved[n].dtype == right[n].dtype and torch.equal(saved[n], right[n]) for n in right)
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(again.eval()(ids).logits, policy.model(ids).logits)
    text = "12+34=定海"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text)["input_ids"] == policy.prompt_ids([text])[0]
    assert torch.equal(log_probs(load_tiny(tmp_path / "model", dtype=dtype)), log_probs(policy))


def test_a_saved_model_is_replaced_only_by_a_whole_one(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_tiny(tiny_folder("llama"))
    policy.save(tmp_path / "model")
    before = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy.tokenizer, "save_pretrained", full)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1.0)
    with pytest.raises(OSError, match="No space left"):
        policy.save(tmp_path / "model")
    assert {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()} == before

    monkeypatch.undo()
    policy.save(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"], "something was left behind"


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2-tied"])
def test_adapters_are_merged_and_kept(name: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = load_tiny(tiny_folder(name), lora=LORA)
    stir_adapters(policy)
    before = log_probs(policy)
    policy.save(tmp_path / "model")
    assert torch.equal(log_probs(policy), before), "saving changed the policy"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(merged(ids).logits, policy.model(ids).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_probs(load_tiny(tmp_path / "model")), before, atol=1e-4, rtol=1e-4)

    base = AutoModelForCausalLM.from_pretrained(tiny_folder(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")
    torch.testing.assert_close(adapted(ids).logits, policy.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_saved_run_of_adapters_prints_nothing(
    tiny_folder: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("gpt2", "llama", "qwen3-moe"):
        load_tiny(tiny_folder(name), lora=LORA).save(tmp_path / name)
    assert capfd.readouterr() == ("", "")


def test_scoring_in_pieces_is_scoring_at_once(tiny_folder: Callable[[str], Path]) -> None:
    """Micro-batches change padding alone."""
    policy = load_tiny(tiny_folder("mistral-sliding"))
    apart = torch.cat([score(policy, [s], 1.0)[0] for s in SEQUENCES])
    torch.testing.assert_close(log_probs(policy), apart.detach(), atol=1e-5, rtol=0)


def test_a_completion_may_be_a_single_token(tiny_folder: Callable[[str], Path]) -> None:
    policy = load_tiny(tiny_folder("llama"))
    one = [TokenSequence([5], [7])]
    assert score(policy, one, 1.0)[0].shape == (1,)
    torch.testing.assert_close(score(policy, one, 1.0)[0].detach(), reference_log_probs(policy.model, one))
