"""Randomness as a function of (seed, purpose, step), so that a resumed run needs no saved generator states."""

from __future__ import annotations

from hashlib import blake2b


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed; different purposes and steps give unrelated ones."""
    return int.from_bytes(blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest(), "big") >> 1
