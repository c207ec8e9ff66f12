"""Floors of `gathered_similarity`. Shapes: n queries, N keys, D features of `size` bytes."""

from __future__ import annotations


def similarity_flops(queries: int, keys: int, d: int) -> int:
    """One product of n×N×D."""
    return 2 * queries * keys * d


def similarity_hbm_bytes(queries: int, keys: int, d: int, size: int, topk: int = 0) -> int:
    """The least: queries and keys read once, results written: 16 bytes and 12 per place."""
    return (queries + keys) * d * size + queries * (16 + 12 * topk)
