"""Permutations that are never written out are permutations, and look random."""

import numpy as np
import pytest

from clipfast.data.mixing import _mix_one, key_of, mix, permute


def permutation(size, key):
    places = np.arange(size, dtype=np.uint64)
    sizes = np.full(size, size, np.uint64)
    return permute(places, sizes, np.full(size, key, np.uint64))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4096, 100_003])
def test_every_place_is_reached_once(size):
    assert np.array_equal(np.sort(permutation(size, 7)), np.arange(size))


def test_several_sizes_and_keys_in_one_call_give_what_they_give_alone():
    sizes = np.repeat(np.array([3, 1000, 77], np.uint64), [3, 1000, 77])
    places = np.concatenate([np.arange(n, dtype=np.uint64) for n in (3, 1000, 77)])
    keys = np.repeat(np.array([1, 2, 3], np.uint64), [3, 1000, 77])
    alone = np.concatenate([permutation(n, k) for n, k in ((3, 1), (1000, 2), (77, 3))])
    assert np.array_equal(permute(places, sizes, keys), alone)


def test_another_key_is_another_permutation_without_traces_of_the_first():
    first, second = permutation(10_000, key_of(0, 0)), permutation(10_000, key_of(0, 1))
    assert np.count_nonzero(first == second) < 10
    assert abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1]) < 0.05
    assert abs(np.corrcoef(first.astype(float), np.arange(10_000))[0, 1]) < 0.05


def test_neighbours_are_torn_apart():
    steps = np.abs(np.diff(permutation(10_000, 3).astype(np.int64)))
    assert np.mean(steps) == pytest.approx(10_000 / 3, rel=0.05)  # as of independent draws


def test_small_sets_reach_all_their_permutations():
    seen = {tuple(permutation(3, key_of(0, epoch))) for epoch in range(200)}
    assert len(seen) == 6


def test_mixing_one_number_is_mixing_many():
    x = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert [_mix_one(int(n)) for n in x] == mix(x).tolist()


def test_mixing_is_one_to_one_and_changes_half_of_the_bits():
    x = np.arange(1 << 16, dtype=np.uint64)
    assert len(np.unique(mix(x))) == len(x)
    flipped = mix(x) ^ mix(x ^ np.uint64(1))
    assert np.bitwise_count(flipped).mean() == pytest.approx(32, abs=0.1)


def test_keys_tell_the_order_of_their_parts_apart():
    assert len({int(key_of(*parts)) for parts in [(0,), (0, 0), (0, 1), (1, 0), (1,)]}) == 5
