"""Proves that every folder or name that holds no usable model is refused in one or two lines that say why, quickly, and
that loading a good one prints nothing.

Run: pytest tests/models/test_loading.py
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from tiny_models import CONFIGS, PAD, load_tiny, random_sequences, save_tiny
from transformers import LlamaModel

from dinghai.config.settings import ModelSettings
from dinghai.errors import InputError
from dinghai.policy.model import check_context, choose_device, load_policy
from dinghai.policy.scoring import score


@pytest.fixture
def llama(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder of one's own, to be spoilt."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))


def refusal(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        load_policy(ModelSettings(path=str(path)), 0)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    assert len(text) < 600
    return text


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/nothing-of-this-name", "a/b/c"])
def test_no_folder(path: str) -> None:
    assert refusal(path) == f"model.path {path!r} does not exist"


def test_a_file(llama: Path) -> None:
    assert "is a file: name the folder" in refusal(llama / "config.json")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "holds no config.json" in refusal(tmp_path)


def test_no_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    assert "holds no *.safetensors weights" in refusal(llama)


def test_pickled_weights_are_never_read(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    message = refusal(llama)
    assert "as a pickle (pytorch_model.bin), which may run any code" in message
    assert "save_pretrained" in message


def test_damaged_weights(llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"\x00" * 64)
    assert "cannot be loaded as a causal language model" in refusal(llama)


def test_damaged_configuration(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    refusal(llama)


def test_unknown_architecture(llama: Path) -> None:
    (llama / "config.json").write_text(json.dumps({"model_type": "nobody_knows_it"}))
    assert "nobody_knows_it" in refusal(llama)


def test_code_beside_the_model_is_not_run(llama: Path, tmp_path: Path) -> None:
    (llama / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}})
    )
    (llama / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refusal(llama)
    assert not (tmp_path / "ran").exists()


def test_no_tokenizer(llama: Path) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()
    assert "its tokenizer cannot be loaded" in refusal(llama)


def test_not_a_language_model(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "model_type": "vit", "architectures": ["ViTModel"]}))
    assert "cannot be loaded as a causal language model" in refusal(llama)


def test_weights_without_a_head_are_not_filled_with_random_ones(tmp_path: Path) -> None:
    """The library would start from a random head, after a warning."""
    save_tiny(tmp_path, CONFIGS["llama"](), model_class=LlamaModel)
    assert "its weights lack lm_head.weight" in refusal(tmp_path)


def test_adapters_alone(llama: Path) -> None:
    (llama / "config.json").rename(llama / "adapter_config.json")
    assert "holds adapters without their model: merge them first" in refusal(llama)


# --- names on the hub ------------------------------------------------------------------------------------------------


def test_a_name_without_a_network_is_refused_at_once() -> None:
    begun = time.perf_counter()
    message = refusal("someone/some-model")
    assert time.perf_counter() - begun < 5
    assert "is not a folder here, and the hub cannot be reached" in message
    assert "name a folder with the model" in message


def test_a_name_in_the_cache_needs_no_network(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    repository, commit = cache / "models--someone--some-model", "0" * 40
    shutil.copytree(llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    assert load_policy(ModelSettings(path="someone/some-model"), 0).vocabulary == 300


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("RepositoryNotFoundError", "neither a folder here nor a model on the hub"),
        ("GatedRepoError", "needs its owner's leave"),
        ("HfHubHTTPError", "the hub cannot be reached"),
    ],
)
def test_what_the_hub_answers(error: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(huggingface_hub.errors, error)
    answer = kind.__new__(kind)
    Exception.__init__(answer, f"{error} 40x Client Error.\nRequest ID: 1\nmore")

    def model_info(*_: Any, **__: Any) -> None:
        raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert said in refusal("someone/some-model")


def test_an_impossible_name() -> None:
    assert "does not exist" in refusal("no model has this name")


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_loading_scoring_and_saving_print_nothing(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = load_tiny(llama)
    score(policy, random_sequences((3, 4)), 1.0)
    policy.save(tmp_path / "saved")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_that_ends_in_padding_draws_no_warning(
    name: str, tiny_folder: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """The library guesses padding from a sequence's last token; a model may well sample that token."""
    policy = load_tiny(tiny_folder(name))
    policy.hidden(torch.tensor([[1, PAD]]))
    assert capfd.readouterr() == ("", "")


def test_dropout_is_off(tmp_path: Path) -> None:
    """With the dropout of its configuration at work, two scorings would differ: the ratio would not start at 1."""
    config = CONFIGS["gpt2"]()
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.1
    policy = load_tiny(save_tiny(tmp_path, config))
    sequences = random_sequences((4, 9), (7, 5))
    policy.model.train()  # even so
    once, again = (score(policy, sequences, 1.0)[0] for _ in range(2))
    assert torch.equal(once, again)


def test_context_is_checked(llama: Path) -> None:
    policy = load_tiny(llama)
    assert policy.context == 256
    check_context(policy, [1] * 200, "p", 56)
    with pytest.raises(InputError, match=r"'p' has 200 tokens; .*max_new_tokens = 57.* context of 256: shorten it"):
        check_context(policy, [1] * 200, "p", 57)
    with pytest.raises(InputError, match="'p' has no tokens"):
        check_context(policy, [], "p", 1)
    with pytest.raises(InputError, match="'p' has token 300, but the model knows 300"):
        check_context(policy, [300], "p", 1)


def test_cuda_is_asked_for_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match=re.escape('model.device is "cuda", but no CUDA device is found')):
        choose_device("cuda")


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_plain_prompts_are_bytes(llama: Path) -> None:
    policy = load_tiny(llama)
    assert policy.prompt_ids(["12+34=", "é"]) == [list(_byte_ids(policy, "12+34=")), list(_byte_ids(policy, "é"))]
    assert policy.text([*_byte_ids(policy, "定海 , é"), 256]) == "定海 , é"


def test_a_chat_template_is_used(llama: Path) -> None:
    policy = load_tiny(llama)
    policy.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
    )
    assert [policy.text(ids) for ids in policy.prompt_ids(["a", "bc"])] == ["[user]a[me]", "[user]bc[me]"]


@pytest.mark.parametrize(("before", "after"), [([257], []), ([257], [256]), ([], [256])])
def test_tokenizers_that_open_or_close_every_text(llama: Path, before: list[int], after: list[int]) -> None:
    """What opens a text belongs to the prompt; what closes it does not."""
    from tokenizers.processors import TemplateProcessing

    policy = load_tiny(llama)
    names = {256: "<|end|>", 257: "<|pad|>"}
    policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*(names[i] for i in before), "$A", *(names[i] for i in after)]),
        special_tokens=[(name, i) for i, name in names.items()],
    )
    assert policy.prompt_ids(["ab"]) == [[*before, *_byte_ids(policy, "ab")]]


def _byte_ids(policy: Any, text: str) -> list[int]:
    return policy.tokenizer(text, add_special_tokens=False)["input_ids"]
