"""From token ids to what a reader sees: the text made visible, and characters put together that tokens cut in pieces.

A byte-level tokenizer may cut one character (海, an emoji) into several tokens. Such a character is shown whole on the
token that begins it, and the tokens that continue it show nothing of their own. Bytes that are no character in any
company are shown as `\\xNN`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dinghai.lens.completions import Spell, Spelling
from dinghai.text import safe

TokenText = Callable[[int], str | bytes]
"""A token's text; bytes where the tokenizer writes bytes, which make characters only together with their neighbours."""

TOKENIZER_FILE = "tokenizer.json"
REPLACEMENT = "\ufffd"  # what a decoder gives for bytes that are no whole character
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how tokenizers of SentencePiece write a lone byte
_LENGTH_OF_CHARACTER = [1] * 0xC0 + [2] * 0x20 + [3] * 0x10 + [4] * 0x10  # in UTF-8, by its first byte


def visible(token_text: TokenText) -> Callable[[int], str]:
    """One token by itself, with every acting or invisible character escaped, and each id asked for once."""

    @cache
    def text(token: int) -> str:
        own = token_text(token)
        return safe(own.decode("utf-8", "backslashreplace") if isinstance(own, bytes) else own)

    return text


def speller(token_text: TokenText) -> Spell:
    """The tokens of a completion together, with every acting or invisible character escaped; each id asked for once."""
    own = cache(token_text)
    alone = visible(own)

    @cache
    def cut_bytes(token: int) -> bytes | None:
        """The bytes of a token that is no whole characters by itself."""
        text = own(token)
        return text if isinstance(text, bytes) and not _is_utf8(text) else None

    def spell(tokens: Sequence[int]) -> Spelling:
        texts = [alone(token) for token in tokens]
        cut = {place: data for place, token in enumerate(tokens) if (data := cut_bytes(token)) is not None}
        for run in _runs(list(cut)):
            for place, text in zip(run, _put_together([cut[place] for place in run]), strict=True):
                texts[place] = safe(text)
        return Spelling(texts, {place: data.hex(" ") for place, data in cut.items()})

    return spell


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Neighbours together: [3, 4, 7] -> [[3, 4], [7]]."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _put_together(parts: Sequence[bytes]) -> list[str]:
    """The text of each part: the characters that begin in it. One that only continues a character has none."""
    data = b"".join(parts)
    ends = list(itertools.accumulate(len(part) for part in parts))
    texts = [""] * len(parts)
    token = place = 0
    while place < len(data):
        while place >= ends[token]:
            token += 1
        length = _LENGTH_OF_CHARACTER[data[place]]
        try:
            texts[token] += data[place : place + length].decode("utf-8")
        except UnicodeDecodeError:
            length = 1
            texts[token] += f"\\x{data[place]:02x}"
        place += length
    return texts


def tokenizer_file(run_folder: Path) -> Path:
    """The tokenizer of a run, which it has from its start; in older runs it came with the model, at the end."""
    own = run_folder / TOKENIZER_FILE
    return own if own.is_file() else run_folder / "model" / TOKENIZER_FILE


def load_token_text(file: Path) -> TokenText | None:
    """The decoder of a `tokenizer.json`; None where there is none or it cannot be read."""
    if not file.is_file():
        return None
    from tokenizers import Tokenizer  # only where it is needed: it takes a while to load

    try:
        described = json.loads(file.read_bytes())
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises bare Exception for a damaged file; the page then shows ids, and says so
        return None
    decoders = _decoders(described)
    byte_of = _byte_alphabet() if any(one.get("type") == "ByteLevel" for one in decoders) else {}
    falls_back = any(one.get("type") == "ByteFallback" for one in decoders)
    space = _space(decoders)
    special = {entry["id"]: entry["content"] for entry in described.get("added_tokens") or []}

    def text(token: int) -> str | bytes:
        if token in special:
            return str(special[token])
        piece = tokenizer.id_to_token(token)
        if piece is None:
            return f"⟨{token}⟩"
        if byte_of and all(character in byte_of for character in piece):
            return bytes(byte_of[character] for character in piece)
        lone_byte = _BYTE_PIECE.fullmatch(piece) if falls_back else None
        if lone_byte:
            return bytes([int(lone_byte[1], 16)])
        if space:  # decoding a token by itself takes the space off its front, as if it began the text
            return str(piece).replace(space, " ")
        decoded = tokenizer.decode([token], skip_special_tokens=False)
        return str(piece if REPLACEMENT in decoded else decoded)

    return text


def _decoders(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of the decoder that a `tokenizer.json` describes."""
    decoder = described.get("decoder")
    if not isinstance(decoder, dict):
        return []
    parts = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    return [part for part in parts or [] if isinstance(part, dict)]


def _space(decoders: Sequence[dict[str, Any]]) -> str | None:
    """The character that stands for a space in the vocabulary (▁ for SentencePiece); None where none does."""
    for decoder in decoders:
        if decoder.get("type") == "Metaspace":
            return str(decoder.get("replacement", "▁"))
        if decoder.get("type") == "Replace" and decoder.get("content") == " ":
            pattern = decoder.get("pattern")
            return str(pattern["String"]) if isinstance(pattern, dict) and "String" in pattern else None
    return None


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes with (GPT-2): printable Latin-1 stands for itself, the
    other bytes in order for the characters from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
