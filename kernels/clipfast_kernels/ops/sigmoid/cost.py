"""Floors of the sigmoid loss, for benchmarks and planning: FLOPs, HBM and exchanged bytes.

Shapes: B local rows, N pairs over all ranks (B = N for one process), W ranks, D features of `size`
bytes.
"""

from __future__ import annotations


def sigmoid_flops(n: int, d: int, gradient: bool = True, rows: int | None = None) -> int:
    """One product of rows×N×D for the loss and two for the gradients, in one sweep; with `rows` =
    B < N per rank each side by itself, 4 in all."""
    products = (3 if rows is None else 4) if gradient else 1
    return 2 * (n if rows is None else rows) * n * d * products


def sigmoid_hbm_bytes(n: int, d: int, size: int, rows: int | None = None) -> int:
    """The least: both towers' features read once, local gradients written in float32."""
    return 2 * n * d * size + 2 * (n if rows is None else rows) * d * max(4, size)


def sigmoid_gathered_bytes(n: int, d: int, size: int, ranks: int, ids: bool = False) -> int:
    """What one rank receives per step, as its collectives' output: both towers' features, each
    rank's loss in float64, and the int64 ids if there are."""
    return 2 * n * d * size + 8 * ranks + (8 * n if ids else 0)
