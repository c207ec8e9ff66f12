"""Batches: full, in the sampler's order whatever the workers, and free of unusable samples."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from clipfast.data.decode import RandomCrop
from clipfast.data.loader import Loader
from clipfast.data.sampler import Sampler
from clipfast.data.shards import ShardSet, ShardWriter
from clipfast.data.tokenizer import tokenize
from clipfast.errors import UserError


def loader_of(shards, workers=2, on_rejected=lambda rejected: None, batch_size=8):
    return Loader(
        shards,
        Sampler.of(len(shards), batch_size, workers=1, seed=0),
        image_size=32,
        tokenize=partial(tokenize, context_length=32, packed=True),
        crop=RandomCrop(),
        workers=workers,
        on_rejected=on_rejected,
    )


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def shards_with_faults(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=100) as writer:
        for i in range(24):
            writer.write(jpeg((10 * i, 0, 0)), f"red number {i}")
        writer.write(b"\xff\xd8 broken", "corrupt image")
        writer.write(b"", "empty image")
        writer.write(jpeg("blue"), "  \n ")
    return ShardSet(writer.shards)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_neither_order_nor_pixels(digit_shards, workers):
    shards = digit_shards.samples("train")
    expected = list(loader_of(shards, workers=0).epoch(1))
    batches = list(loader_of(shards, workers=workers).epoch(1))
    assert len(batches) == len(expected) == 12
    for batch, other in zip(batches, expected, strict=True):
        assert np.array_equal(batch.numbers, other.numbers)
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.text.tokens, other.text.tokens)


def test_an_epoch_can_begin_at_any_step(digit_shards):
    shards = digit_shards.samples("train")
    rest = list(loader_of(shards).epoch(0, first_step=9))
    assert [list(b.numbers) for b in rest] == [
        list(b.numbers) for b in list(loader_of(shards).epoch(0))[9:]
    ]


def test_unusable_samples_are_replaced_and_each_listed_once(shards_with_faults):
    rejected = []
    loader = loader_of(shards_with_faults, on_rejected=rejected.append)
    for epoch in (0, 1, 2):
        for batch in loader.epoch(epoch):
            assert len(batch.images) == 8
            assert max(batch.numbers) < 24
    reasons = {r.sample.key: r.reason for r in rejected}
    assert len(rejected) == 3
    assert "undecodable image" in reasons["000000024"]
    assert reasons["000000025"] == "empty image"
    assert reasons["000000026"] == "empty caption"


def test_data_without_a_usable_sample_stops_with_a_sentence(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=100) as writer:
        for _ in range(4):
            writer.write(b"broken", "caption")
    loader = loader_of(ShardSet(writer.shards), batch_size=2)
    with pytest.raises(UserError, match="expected mostly usable samples; 20 drawn in a row"):
        next(loader.epoch(0))


def test_a_consumer_that_stops_early_leaves_no_thread_behind(digit_shards):
    import threading

    batches = loader_of(digit_shards.samples("train"), workers=3).epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("clipfast-decode")]
