"""Floors of the contrastive loss, for benchmarks and planning: FLOPs, HBM and exchanged bytes.

Shapes: B local rows, N pairs over all ranks (B = N for one process), D features of `size` bytes.
"""

from __future__ import annotations


def product_flops(n: int, d: int, rows: int | None = None) -> int:
    """One matrix product of rows×N×D, the unit u: a multiply and an add per term."""
    return 2 * (n if rows is None else rows) * n * d


def contrastive_flops(n: int, d: int, backward: bool = True, rows: int | None = None) -> int:
    """The least without an N×N array: one product forward, and backward that one again and the
    two gradients'. With `rows` = B < N of them per rank, each side by itself: 2 and 4."""
    forward, both = (1, 4) if rows is None else (2, 6)
    return product_flops(n, d, rows) * (both if backward else forward)


def contrastive_hbm_bytes(n: int, d: int, size: int, rows: int | None = None) -> int:
    """The least: both towers' features read forward and backward, local gradients written."""
    return 4 * n * d * size + 2 * (n if rows is None else rows) * d * size


def contrastive_gathered_bytes(n: int, d: int, size: int, ids: bool = False) -> int:
    """What one rank receives per step, as its collectives' output: both towers' features, two
    vectors of log-likelihoods in float32 (float64 for float64), and the int64 ids if there are."""
    return 2 * n * d * size + 2 * n * max(4, size) + (8 * n if ids else 0)
