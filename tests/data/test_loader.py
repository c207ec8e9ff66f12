"""Batches: full, in the sampler's order whatever the workers, and free of unusable samples."""

import io
import json
import os
import threading

import numpy as np
import pytest
import torch
from loading import loader_of, tar_samples
from PIL import Image

from clipfast.data.loader import take_one_core
from clipfast.data.sampler import Sampler
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.errors import UserError


def jpeg(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def shard(folder, pairs, per_shard=100):
    with ShardWriter(folder, "x", samples_per_shard=per_shard) as writer:
        for image, caption in pairs:
            writer.write(image, caption)
    return tar_samples(f"{folder}/x-{{000000..{len(writer.shards) - 1:06d}}}.tar")


@pytest.fixture
def with_faults(tmp_path):
    good = [(jpeg((10 * i, 0, 0)), f"red number {i}") for i in range(24)]
    bad = [(b"\xff\xd8 broken", "corrupt image"), (b"GIF89a", "a GIF"), (jpeg("blue"), "  \n ")]
    return shard(tmp_path, good + bad)


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert np.array_equal(batch.numbers, other.numbers)
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.text.tokens, other.text.tokens)
        assert torch.equal(batch.text.cu_seqlens, other.text.cu_seqlens)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [8, 40])
def test_workers_change_neither_order_nor_pixels(digit_shards, tmp_path, workers, batch_size):
    samples = digit_shards.samples("train")
    expected, batches = (
        list(loader_of(samples, tmp_path, workers=w, batch_size=batch_size).epoch(1))
        for w in (0, workers)
    )
    assert len(batches) == -(-96 // batch_size)
    assert_same(batches, expected)


def test_rows_of_a_batch_are_the_samplers_samples(digit_shards, tmp_path):
    samples = digit_shards.samples("train")
    loader = loader_of(samples, tmp_path, augment=False, batch_size=40)
    batch = loader.batch(0, 1)
    assert np.array_equal(batch.numbers, loader.sampler.batch(0, 1))
    for row in (0, 17, 39):
        read = samples.read(int(batch.numbers[row]))
        pixels, _ = loader.decoder([read.image], None)
        assert torch.equal(batch.images[row], pixels[0])
        begin, end = batch.text.cu_seqlens[row : row + 2]
        ids = loader.tokenize([read.captions[0].decode()])
        assert torch.equal(batch.text.tokens[begin:end], ids.tokens)


def test_ranks_together_load_the_batch_of_one(digit_shards, tmp_path):
    samples = digit_shards.samples("train")
    whole = loader_of(samples, tmp_path, batch_size=16).batch(1, 2)
    order = Sampler.of(samples.shards, 16, 1, seed=0).order
    parts = [
        loader_of(samples, tmp_path, sampler=Sampler(samples.shards, order, rank, 4)).batch(1, 2)
        for rank in range(4)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.text.tokens for part in parts]), whole.text.tokens)


def test_an_epoch_can_begin_at_any_step(digit_shards, tmp_path):
    samples = digit_shards.samples("train")
    rest = list(loader_of(samples, tmp_path).epoch(0, first_step=9))
    assert_same(rest, list(loader_of(samples, tmp_path).epoch(0))[9:])


def test_augmentation_differs_between_epochs_and_evaluations_does_not(digit_shards, tmp_path):
    samples = digit_shards.samples("train")
    for augment, differs in ((True, True), (False, False)):
        loader = loader_of(samples, tmp_path, augment=augment, batch_size=96)
        first, second = (loader.batch(epoch, 0) for epoch in (0, 1))
        a, b = (batch.images[np.argsort(batch.numbers)] for batch in (first, second))
        assert torch.equal(a, b) != differs


def test_unusable_samples_are_replaced_and_each_listed_once(with_faults, tmp_path):
    told = []
    loader = loader_of(with_faults, tmp_path, told=told)
    for epoch in (0, 1, 2):
        for batch in loader.epoch(epoch):
            assert len(batch.images) == 8
            assert max(batch.numbers) < 24
    listed = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    reasons = {entry["key"]: entry["reason"] for entry in listed}
    assert len(listed) == len(told) == loader.quarantine.replaced == 3
    assert "image" in reasons["000000024"]
    assert "GIF" in reasons["000000025"]
    assert reasons["000000026"] == "empty caption"
    offsets = {entry["key"]: entry["offset"] for entry in listed}
    content = (tmp_path / "x-000000.tar").read_bytes()
    assert content[offsets["000000024"] :].startswith(b"\xff\xd8 broken")


def test_what_replaces_a_sample_does_not_depend_on_the_workers(with_faults, tmp_path):
    for epoch in range(3):
        expected = list(loader_of(with_faults, tmp_path, workers=0).epoch(epoch))
        assert_same(loader_of(with_faults, tmp_path, workers=3).epoch(epoch), expected)


def test_a_shard_that_disappears_is_replaced_by_the_others(tmp_path):
    pairs = [(jpeg((10 * i, 0, 0)), f"red number {i}") for i in range(24)]
    samples = shard(tmp_path, pairs, per_shard=8)
    loader = loader_of(samples, tmp_path)
    os.remove(tmp_path / "x-000001.tar")  # one that is open stays readable
    for epoch in (1, 2):
        for batch in loader.epoch(epoch):
            assert len(batch.images) == 8
            assert not set(batch.numbers) & set(range(8, 16))
    assert loader.quarantine.replaced == 8


def test_data_without_a_usable_sample_stops_with_a_sentence(tmp_path):
    samples = shard(tmp_path, [(b"broken", "caption")] * 4)
    loader = loader_of(samples, tmp_path, batch_size=2)
    with pytest.raises(UserError, match="expected mostly usable samples; 20 drawn in a row"):
        next(loader.epoch(0))


def test_more_unusable_samples_than_allowed_stop_the_run_and_tell_where_they_are_listed(tmp_path):
    good, bad = [(jpeg("red"), "red")] * 30, [(b"broken", "caption")] * 12
    loader = loader_of(shard(tmp_path, good + bad), tmp_path, most=0.01)
    # which thread's fault is the one too many is theirs to decide
    with pytest.raises(UserError, match=r"at most 1.00% unusable .* got 1[12] among .*quarantine"):
        list(loader.epoch(0))


def test_a_consumer_that_stops_early_leaves_no_thread_behind(digit_shards, tmp_path):
    batches = loader_of(digit_shards.samples("train"), tmp_path, workers=3).epoch(0)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("clipfast-decode")]


def test_threads_of_the_loader_leave_the_models_cores_alone():
    before = torch.get_num_threads()
    thread = threading.Thread(target=take_one_core)
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before
