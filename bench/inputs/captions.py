"""Captions of the length that web captions have."""

from __future__ import annotations

import random

_WORDS = ["a", "the", "of", "on", "with", "dog", "cat", "red", "small", "street", "beach", "near"]


def captions(count: int) -> list[str]:
    """Of 10 to 26 tokens, 18 on average, as web captions have."""
    rng = random.Random(0)
    return [" ".join(rng.choices(_WORDS, k=rng.randint(8, 24))) for _ in range(count)]
