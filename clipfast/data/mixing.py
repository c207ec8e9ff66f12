"""Pseudo-random numbers as functions of their place, and permutations that are never written out.

Everything here computes on arrays of uint64, modulo 2⁶⁴.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_ROUNDS = 4
_64_BITS = (1 << 64) - 1


def mix(x: U64) -> U64:
    """SplitMix64's finaliser: neighbouring inputs give unrelated outputs, different ones different
    ones. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure
    16, with Stafford's variant 13."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(*parts: int) -> int:
    """One key of several whole numbers from 0 on."""
    key = 0
    for part in parts:
        key = _mix_one(key ^ _mix_one(part))
    return key


def _mix_one(x: int) -> int:
    """`mix` of one number, which as an array takes thirty times as long."""
    x = (x + 0x9E3779B97F4A7C15) & _64_BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return x ^ (x >> 31)


def permute(places: U64, sizes: U64, keys: U64) -> U64:
    """Where each place goes in a permutation of 0 … size − 1 that its key chooses.

    A Feistel network permutes 0 … 4ᵏ − 1, the smallest such range that holds the size; a place that
    lands outside goes through it again until it lands inside (cycle walking), fewer than four times
    on average.

    Args:
        places: (n,), each below its size.
        sizes: (n,), from 1 on.
        keys: (n,).

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method 3.
    """
    half_bits = _half_bits(sizes)
    moved = _feistel(places, half_bits, keys)
    while (outside := moved >= sizes).any():
        moved[outside] = _feistel(moved[outside], half_bits[outside], keys[outside])
    return moved


def _half_bits(sizes: U64) -> U64:
    bits = np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64)))
    return np.maximum((bits + 1) // 2, 1).astype(np.uint64)


def _feistel(x: U64, half_bits: U64, keys: U64) -> U64:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = x >> half_bits, x & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (mix(right + mix(keys + np.uint64(turn))) & mask)
    return (left << half_bits) | right
