"""From token ids to what a reader sees: the token's text made visible, bytes that are no character as `\\xNN`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from dinghai.view.terminal import safe

TokenText = Callable[[int], str]

REPLACEMENT = "\ufffd"  # what a decoder gives for bytes that are no whole character


def visible(token_text: TokenText) -> TokenText:
    """The same, with every acting or invisible character escaped, and each id asked for once."""

    @cache
    def text(token: int) -> str:
        return safe(token_text(token))

    return text


def load_token_text(tokenizer_file: Path) -> TokenText | None:
    """The decoder of a `tokenizer.json`; None where there is none or it cannot be read."""
    if not tokenizer_file.is_file():
        return None
    from tokenizers import Tokenizer  # only where it is needed: it takes a while to load

    try:
        described = json.loads(tokenizer_file.read_bytes())
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception:  # the library raises bare Exception for a damaged file; the page then shows ids, and says so
        return None
    byte_of = _byte_alphabet() if _is_byte_level(described) else {}
    special = {entry["id"]: entry["content"] for entry in described.get("added_tokens") or []}

    def text(token: int) -> str:
        if token in special:
            return str(special[token])
        piece = tokenizer.id_to_token(token)
        if piece is None:
            return f"⟨{token}⟩"
        if byte_of and all(character in byte_of for character in piece):
            return bytes(byte_of[character] for character in piece).decode("utf-8", "backslashreplace")
        decoded = tokenizer.decode([token], skip_special_tokens=False)
        return piece if REPLACEMENT in decoded else decoded

    return text


def _is_byte_level(described: dict[str, object]) -> bool:
    decoder = described.get("decoder")
    if not isinstance(decoder, dict):
        return False
    parts = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    return any(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in parts or [])


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes with (GPT-2): printable Latin-1 stands for itself, the
    other bytes in order for the characters from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
