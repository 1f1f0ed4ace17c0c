"""Two evaluations of the same weights: of the completions that were recorded, as updates score them.

Run: pytest tests/lens/test_reevaluate.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # the tiny runs of the tests of training
from tiny_runs import run_tiny

from dinghai.errors import InputError
from dinghai.lens import reevaluate as module
from dinghai.lens.reevaluate import Reevaluation, is_cheap, reevaluate
from dinghai.lens.replay import recorded_settings
from dinghai.lens.tokens import read_tokens
from dinghai.trace import TraceReader


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("runs"), "run", {"run": {"steps": 2}})


@pytest.fixture(scope="module")
def found(run: Path) -> Reevaluation:
    return reevaluate(run, recorded_settings(run), "token")


def test_evaluations_in_one_precision_agree_and_in_another_differ(found: Reevaluation) -> None:
    names = {one.name: one for one in found.comparisons}
    assert list(names) == ["other micro-batches", "padded, not packed", "bfloat16, not float32"]
    assert [one.same_precision for one in names.values()] == [True, True, False]
    for name in ("other micro-batches", "padded, not packed"):
        assert names[name].apart.quantile(1.0) < 1e-5
    assert 1e-4 < names["bfloat16, not float32"].apart.quantile(0.5) < 0.1
    assert found.noisiest.same_precision


def test_what_is_evaluated_are_the_recorded_completions_after_their_prompts(run: Path, found: Reevaluation) -> None:
    """Against the library's own logits for one of them."""
    reader = TraceReader(run / "trace")
    samples = reader.samples(found.step, ["sample", "prompt"])
    tokens = read_tokens(reader, found.step)
    sample = int(samples["sample"].to_pylist()[0])
    tokens = tokens.rows(np.flatnonzero(tokens.sample == sample))
    tokens = tokens.rows(np.flatnonzero(tokens.update == tokens.update[0]))
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    prompt = tokenizer(samples["prompt"][samples["sample"].to_pylist().index(sample)].as_py())["input_ids"]
    ids = torch.tensor([prompt + tokens.token.tolist()])
    with torch.no_grad():
        logp_SV = model(ids).logits[0].log_softmax(-1)
    expected = logp_SV[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
    np.testing.assert_allclose(found.comparisons[0].apart.logp_X[: len(expected)], expected, atol=1e-5)  # type: ignore[index]


def test_every_completion_of_the_step_is_evaluated_once(run: Path, found: Reevaluation) -> None:
    samples = TraceReader(run / "trace").samples(found.step, ["tokens"])
    assert found.tokens == sum(samples["tokens"].to_pylist())


def test_no_more_tokens_are_evaluated_than_are_allowed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_MOST", 40)
    found = reevaluate(run, recorded_settings(run), "sequence")
    assert 0 < found.tokens <= 40
    assert found.comparisons[0].apart.what == "sequences"


def test_a_run_without_its_model_cannot_be_measured(run: Path, tmp_path: Path) -> None:
    assert is_cheap(run)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    assert not is_cheap(copy)
    with pytest.raises(InputError, match="holds no model/"):
        reevaluate(copy, recorded_settings(copy), "token")
    shutil.copytree(run / "model", copy / "model")
    shutil.rmtree(copy / "trace")
    with pytest.raises(InputError, match="no recorded step"):
        reevaluate(copy, recorded_settings(copy), "token")
