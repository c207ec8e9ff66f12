"""Floors of `quick_gelu`, for benchmarks and planning. n elements of `size` bytes."""

from __future__ import annotations


def quick_gelu_hbm_bytes(n: int, size: int, backward: bool) -> int:
    """The least of one direction: forward x read and y written; backward x and d_y read and d_x
    written. Arithmetic is not the limit."""
    return (3 if backward else 2) * n * size
