"""Token ids become what a reader can see: characters whole even where tokens cut them, lone bytes as \\xNN."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import payloads
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import byte_tokenizer, ids_of
from tokenizers import Tokenizer, decoders, models

from dinghai.lens.completions import Spell
from dinghai.text import safe
from dinghai.view.token_text import TokenText, load_token_text, speller, visible


def load(folder: Path, tokenizer: Tokenizer) -> TokenText:
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded = load_token_text(folder / "tokenizer.json")
    assert loaded is not None
    return loaded


@pytest.fixture
def text(tmp_path: Path) -> Callable[[int], str]:
    return visible(load(tmp_path, byte_tokenizer()))


@pytest.fixture
def spell(tmp_path: Path) -> Spell:
    return speller(load(tmp_path, byte_tokenizer()))


def spell_bytes(parts: list[bytes]) -> tuple[list[str], dict[int, str]]:
    """How a completion is shown whose tokens are these bytes."""
    spelling = speller(lambda token: parts[token])(range(len(parts)))
    return spelling.text, spelling.bytes


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
def test_one_token_by_itself(text: Callable[[int], str], written: str, shown: list[str]) -> None:
    assert [text(token) for token in ids_of(written)] == [*shown, "<|end|>"]


def test_every_byte_has_a_text_of_its_own(text: Callable[[int], str]) -> None:
    assert len({text(token) for token in range(256)}) == 256


def test_an_id_beyond_the_vocabulary_is_shown_as_one(text: Callable[[int], str]) -> None:
    assert text(99_999) == "⟨99999⟩"


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "[" * 5_000, '{"decoder": 3, "added_tokens": 4}'])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert load_token_text(tmp_path / "tokenizer.json") is None
    assert load_token_text(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([b"\xe6", b"\xb5", b"\xb7"], ["海", "", ""]),
        ([b"\xe6\xb5", b"\xb7", b"!"], ["海", "", "!"]),
        ([b" \xf0\x9f", b"\x8c\x8a"], [" 🌊", ""]),  # a token may begin a character after others
        ([b"\xe6\xb5", b"\xb7\xe6", b"\xb5\xb7"], ["海", "海", ""]),  # or end one and begin the next
        ([b"\xe6\xb5", b"\xb7 a", b"b"], ["海", " a", "b"]),  # or end one and go on
        ([b"\xe6", b"a", b"\xb5"], ["\\xe6", "a", "\\xb5"]),  # bytes that are no character in any company
        ([b"\xe6\xb5", b"\xc3", b"\xa9"], ["\\xe6\\xb5", "é", ""]),
        ([b"\xc0", b"\xaf"], ["\\xc0", "\\xaf"]),  # an overlong slash is no slash
        ([b"\xed\xa0", b"\x80"], ["\\xed\\xa0", "\\x80"]),  # nor is a surrogate a character
        ([b"\xf0\x9f"], ["\\xf0\\x9f"]),
        ([b"", b"a"], ["", "a"]),
        ([b"\xff\xff\xff\xff\xff", b"\xf5"], ["\\xff" * 5, "\\xf5"]),
    ],
)
def test_characters_are_put_together(parts: list[bytes], shown: list[str]) -> None:
    assert spell_bytes(parts)[0] == shown


def test_the_bytes_of_cut_characters_are_told(spell: Spell) -> None:
    spelling = spell(ids_of("a海"))
    assert spelling.text == ["a", "海", "", "", "<|end|>"]
    assert spelling.bytes == {1: "e6", 2: "b5", 3: "b7"}


def test_a_special_token_does_not_join_its_neighbours(spell: Spell) -> None:
    ids = ids_of("海")
    assert spell([ids[0], 256, *ids[1:3]]).text == ["\\xe6", "<|end|>", "\\xb5", "\\xb7"]


@pytest.mark.parametrize("character", ["\u202e", "\u200b", "\u2028", "\ufeff", "\U000e0041", "\x85", "\u2066"])
def test_what_acts_is_escaped_also_where_it_was_cut(character: str) -> None:
    data = character.encode()
    for cut in range(1, len(data)):
        shown, _ = spell_bytes([data[:cut], data[cut:]])
        assert shown == [safe(character), ""]
        assert shown[0].isascii()


@pytest.mark.parametrize("payload", payloads.ALL, ids=ascii)
def test_a_hostile_completion_is_shown_as_one_text_would_be(spell: Spell, payload: str) -> None:
    written = payload.encode("utf-8", "backslashreplace").decode()
    assert "".join(spell(ids_of(payload)).text) == safe(written) + "<|end|>"


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=12))
def test_whatever_the_cuts_the_text_is_that_of_all_bytes(data: bytes, cuts: list[int]) -> None:
    """Joined, it is what decoding them at once gives; where the cuts are changes only whose text it is."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[begin:end] for begin, end in itertools.pairwise(places)]
    shown, told = spell_bytes(parts)
    assert len(shown) == len(parts)
    assert "".join(shown) == safe(data.decode("utf-8", "backslashreplace"))
    for place, part in enumerate(parts):
        assert (place in told) == (not _decodes(part))


def _decodes(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_vocabulary_of_words(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"hello": 0, "[UNK]": 1}, unk_token="[UNK]"))
    assert load(tmp_path, words)(0) == "hello"


def test_sentencepiece_keeps_its_spaces_and_joins_its_bytes(tmp_path: Path) -> None:
    """As Llama 2 writes them: ▁ for a space, <0xE6> for a byte."""
    vocabulary = {"▁sea": 0, "▁": 1, "<0xE6>": 2, "<0xB5>": 3, "<0xB7>": 4, "s": 5, "<unk>": 6}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spelling = speller(load(tmp_path, tokenizer))([5, 0, 2, 3, 4, 1, 4])
    assert spelling.text == ["s", " sea", "海", "", "", " ", "\\xb7"]
    assert spelling.bytes == {2: "e6", 3: "b5", 4: "b7", 6: "b7"}


def test_metaspace_keeps_its_spaces(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("re", -2.0)], 0, False))
    tokenizer.decoder = decoders.Metaspace()
    assert speller(load(tmp_path, tokenizer))([1, 2]).text == [" the", "re"]


def test_each_id_is_asked_for_once() -> None:
    asked: list[int] = []

    def own(token: int) -> str:
        asked.append(token)
        return "x"

    spell = speller(own)
    spell([1, 2, 1])
    spell([2, 1])
    assert asked == [1, 2]


def test_the_tokenizer_file_of_a_byte_level_model_says_so(tmp_path: Path) -> None:
    """The built-in model's kind: the decoder stands alone, or within a sequence."""
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    described["decoder"] = {"type": "Sequence", "decoders": [described["decoder"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    loaded = load_token_text(tmp_path / "tokenizer.json")
    assert loaded is not None
    assert speller(loaded)(ids_of("海")).text[0] == "海"
