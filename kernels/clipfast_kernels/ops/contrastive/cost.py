"""Arithmetic floors of the contrastive loss, for benchmarks and planning."""

from __future__ import annotations


def product_flops(n: int, d: int) -> int:
    """One N×N×D matrix product, the unit u: a multiply and an add per term."""
    return 2 * n * n * d


def contrastive_flops(n: int, d: int, backward: bool = True) -> int:
    """The least without an N×N array: one product forward, and backward that one again and the
    two gradients'."""
    return product_flops(n, d) * (4 if backward else 1)
