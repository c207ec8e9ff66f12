"""Floors of attention, for benchmarks and planning: FLOPs and bytes.

Per sequence L_q queries and L_k keys; H heads of width D; elements of `size` bytes.
"""

from __future__ import annotations

from collections.abc import Iterable


def seen_pairs(n_q: int, n_k: int, causal: bool) -> int:
    """Query-key pairs that the mask lets through in one sequence."""
    if not causal:
        return n_q * n_k
    return sum(max(0, min(n_k, i + 1 + n_k - n_q)) for i in range(n_q))


def attention_flops(pairs: int, heads: int, width: int, backward: bool = True) -> int:
    """4·D per pair and head forward (two products), 10·D backward (P again, dP, dQ, dK, dV)."""
    return pairs * heads * width * (14 if backward else 4)


def attention_bytes(
    lengths: Iterable[tuple[int, int]], heads: int, width: int, size: int, backward: bool = True
) -> int:
    """The least: q, k, v read and the output written; backward those and d_out read, three
    gradients written. The log-sum-exps, 1/D of that, are left out. `lengths` are (L_q, L_k)."""
    tokens_q, tokens_k = map(sum, zip(*lengths, strict=True))
    forward = 2 * tokens_q + 2 * tokens_k
    again = 3 * tokens_q + 4 * tokens_k
    return heads * width * size * (forward + again if backward else forward)
