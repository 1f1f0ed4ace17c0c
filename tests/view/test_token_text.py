"""Token ids become what a reader can see: whole characters as they are, lone bytes as \\xNN."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_run import byte_tokenizer, ids_of
from tokenizers import Tokenizer, models

from dinghai.view.token_text import TokenText, load_token_text, visible


@pytest.fixture
def text(tmp_path: Path) -> TokenText:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    loaded = load_token_text(tmp_path / "tokenizer.json")
    assert loaded is not None
    return visible(loaded)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("a+b", ["a", "+", "b"]),
        (" \n\t", [" ", "⏎", "\\t"]),
        ("\x1b[", ["\\x1b", "["]),
        ("é", ["\\xc3", "\\xa9"]),
        ("海", ["\\xe6", "\\xb5", "\\xb7"]),
        ("\x00\x7f", ["\\x00", "\\x7f"]),
    ],
)
def test_bytes(text: TokenText, written: str, shown: list[str]) -> None:
    assert [text(token) for token in ids_of(written)] == [*shown, "<|end|>"]


def test_every_byte_has_a_text_of_its_own(text: TokenText) -> None:
    assert len({text(token) for token in range(256)}) == 256


def test_an_id_beyond_the_vocabulary_is_shown_as_one(text: TokenText) -> None:
    assert text(99_999) == "⟨99999⟩"


def test_a_vocabulary_of_words(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"hello": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    text = load_token_text(tmp_path / "tokenizer.json")
    assert text is not None
    assert text(0) == "hello"


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "[" * 5_000, '{"decoder": 3, "added_tokens": 4}'])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert load_token_text(tmp_path / "tokenizer.json") is None
    assert load_token_text(tmp_path / "absent.json") is None
