"""A run has its tokenizer from its start, so that its tokens can be read while it trains and after it died."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import run_tiny

from dinghai.errors import RunFailed
from dinghai.train import run as runs
from dinghai.view.token_text import load_token_text, tokenizer_file


def test_a_run_that_died_in_its_first_step_has_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise RunFailed("a reward was not finite")

    monkeypatch.setattr(runs, "train_step", dies)
    with pytest.raises(RunFailed):
        run_tiny(tmp_path, "run")
    run = tmp_path / "run"
    assert not (run / "model").exists()
    text = load_token_text(tokenizer_file(run))
    assert text is not None
    assert text(16) == b"1"


def test_it_is_the_one_that_comes_with_the_model(tmp_path: Path) -> None:
    run = run_tiny(tmp_path, "run", {"run": {"steps": 1}})
    early, late = load_token_text(run / "tokenizer.json"), load_token_text(run / "model" / "tokenizer.json")
    assert early is not None
    assert late is not None
    assert [early(token) for token in range(258)] == [late(token) for token in range(258)]
