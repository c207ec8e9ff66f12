"""The cache gives back what it was given, and nothing else: not what a crash left, nor others'."""

import os
import struct

import numpy as np
import pytest
import torch
from loading import loader_of, tar_samples

from clipfast.data.feature_cache import FeatureCache, fingerprint
from clipfast.data.images.native import NativeDecoder
from clipfast.data.loader import Caches
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.errors import UserError


def cache_in(folder, samples=9, **key):
    return FeatureCache(folder, "image", samples=samples, key={"tower": "a"} | key)


@pytest.fixture
def filled(tmp_path):
    cache = cache_in(tmp_path)
    cache.put(np.array([7, 0, 3]), torch.arange(12.0).reshape(3, 4))
    return cache


def test_rows_come_back_bit_for_bit_in_another_process(tmp_path, filled):
    again = cache_in(tmp_path)
    assert again.filled == 3
    assert again.get(7).tolist() == [0, 1, 2, 3]
    assert again.get(3).tolist() == [8, 9, 10, 11]
    assert again.get(1) is None


def test_half_precision_survives_unchanged(tmp_path):
    features = torch.randn(2, 5).to(torch.bfloat16)
    cache = cache_in(tmp_path)
    cache.put(np.array([1, 2]), features)
    assert torch.equal(torch.from_numpy(cache.get(1)).bfloat16(), features[0])


def test_another_key_is_another_cache(tmp_path, filled):
    assert cache_in(tmp_path, tower="b").filled == 0
    assert cache_in(tmp_path, samples=8).filled == 0
    assert cache_in(tmp_path).filled == 3


def test_a_row_without_its_checksum_or_with_wrong_bytes_is_missing(tmp_path, filled):
    with open(filled.path / "checksums.u32", "r+b") as file:
        file.seek(4 * 7)
        file.write(struct.pack("<I", 0))
    with open(filled.path / "features.f32", "r+b") as file:
        file.seek(4 * 4 * 3)
        file.write(struct.pack("<f", 8.5))
    again = cache_in(tmp_path)
    assert again.get(7) is None
    assert again.get(3) is None
    assert again.get(0) is not None
    again.put(np.array([3]), torch.ones(1, 4))
    assert again.get(3).tolist() == [1] * 4


def test_rows_of_zeros_are_rows(tmp_path):
    cache = cache_in(tmp_path)
    cache.put(np.array([2]), torch.zeros(1, 4))
    assert cache.get(2).tolist() == [0] * 4


def test_features_that_are_not_finite_are_not_kept(tmp_path):
    cache = cache_in(tmp_path)
    cache.put(np.array([1, 2]), torch.tensor([[1.0, float("nan")], [1.0, 2.0]]))
    assert cache.get(1) is None
    assert cache.get(2) is not None


@pytest.mark.parametrize("name", ["about.json", "features.f32", "checksums.u32"])
@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_damaged_cache_is_refused_with_a_sentence(tmp_path, filled, name, damage):
    if damage == "absent":
        (filled.path / name).unlink()
    else:
        os.truncate(filled.path / name, 5)
    with pytest.raises(UserError, match=r"expected about.json.*of 9 rows; got a damaged cache"):
        cache_in(tmp_path)


def test_a_creation_that_was_cut_short_is_not_taken_for_a_cache(tmp_path):
    cache = cache_in(tmp_path)
    half = cache.path.with_name(f"{cache.path.name}.{os.getpid()}.partial")
    half.mkdir()
    (half / "about.json").write_text("{")
    cache.put(np.array([1]), torch.ones(1, 4))
    assert cache_in(tmp_path).filled == 1
    assert list(tmp_path.iterdir()) == [cache.path]


def test_two_processes_fill_one_cache(tmp_path):
    first, second = cache_in(tmp_path), cache_in(tmp_path)
    first.put(np.array([1]), torch.ones(1, 4))
    second.put(np.array([2]), torch.ones(1, 4))
    assert first.filled == second.filled == 2
    assert list(tmp_path.iterdir()) == [first.path]


def test_features_of_another_width_are_refused(filled):
    with pytest.raises(ValueError, match="width 4; got 5"):
        filled.put(np.array([1]), torch.ones(1, 5))


def test_fingerprints_tell_weights_and_descriptions_apart():
    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    others = [
        fingerprint(state | {"a": torch.zeros(3, 2)}, "x"),
        fingerprint(state | {"b": torch.tensor(2)}, "x"),
        fingerprint(state | {"a": torch.zeros(2, 3).bfloat16()}, "x"),
        fingerprint(state, "y"),
    ]
    assert fingerprint(dict(reversed(state.items())), "x") not in others
    assert fingerprint(dict(reversed(state.items())), "x") == fingerprint(state, "x")
    assert len(set(others)) == 4


@pytest.fixture
def decoded(monkeypatch):
    """How many images each call of the decoder had."""
    counts = []
    original = NativeDecoder.__call__

    def call(self, encoded, randoms):
        counts.append(len(encoded))
        return original(self, encoded, randoms)

    monkeypatch.setattr(NativeDecoder, "__call__", call)
    return counts


def cached_loader(samples, folder, **caches):
    return loader_of(samples, folder, workers=0, augment=False, caches=Caches(**caches))


def test_only_what_the_cache_lacks_is_decoded(digit_shards, tmp_path, decoded):
    samples = digit_shards.samples("train")
    cache = cache_in(tmp_path, len(samples))
    loader = cached_loader(samples, tmp_path, image=cache)
    batch = loader.batch(0, 0)
    assert (sum(decoded), batch.image_found.missing.tolist()) == (8, list(range(8)))
    features = torch.arange(16.0).reshape(8, 2)
    cache.put(batch.numbers[2:], features[2:])
    batch = loader.batch(0, 0)
    assert (sum(decoded), len(batch.images), len(batch.text.cu_seqlens)) == (10, 2, 9)
    assert batch.image_found.missing.tolist() == [0, 1]
    assert torch.equal(batch.image_found.completed(features[:2]), features)


def test_captions_that_the_cache_has_are_not_tokenized(digit_shards, tmp_path):
    samples = digit_shards.samples("train")
    cache = cache_in(tmp_path, len(samples))
    loader = cached_loader(samples, tmp_path, text=cache)
    batch = loader.batch(0, 0)
    cache.put(batch.numbers[1:], torch.ones(7, 2))
    again = loader.batch(0, 0)
    assert len(again.images) == 8
    assert torch.equal(again.text.tokens, batch.text.tokens[: len(again.text.tokens)])
    assert again.text.cu_seqlens.tolist() == batch.text.cu_seqlens[:2].tolist()
    cache.put(batch.numbers[:1], torch.ones(1, 2))
    assert not len(loader.batch(0, 0).text.tokens)


def test_a_substitute_has_its_own_row(digit_shards, tmp_path):
    good = digit_shards.samples("train")
    with ShardWriter(tmp_path / "shards", "x", samples_per_shard=100) as writer:
        for number in range(7):
            writer.write(good.read(number).image, good.read(number).captions[0].decode())
        writer.write(b"broken", "a caption")
    samples = tar_samples(writer.shards[0])
    cache = cache_in(tmp_path / "cache", len(samples))
    loader = cached_loader(samples, tmp_path, image=cache)
    batch = loader.batch(0, 0)
    assert 7 not in batch.numbers
    cache.put(batch.numbers, torch.from_numpy(batch.numbers).float()[:, None])
    found = loader.batch(1, 0)
    assert found.image_found.features[:, 0].tolist() == found.numbers.tolist()
    assert not len(found.images)
