"""Evaluation's order: each sample once, in the data's order, whole batches to each rank."""

import numpy as np
import pytest
from loading import loader_of, tar_samples

from clipfast.data.in_order import InOrder
from clipfast.data.sources.shard_writer import ShardWriter


def numbers(*arguments):
    order = InOrder(*arguments)
    return [order.batch(0, step).tolist() for step in range(order.steps_per_epoch)]


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_one_after_the_other_have_the_batches_of_one_process(samples, world_size):
    alone = numbers(samples, 4)
    assert np.concatenate(alone).tolist() == list(range(samples))
    assert [len(batch) for batch in alone[:-1]] == [4] * (len(alone) - 1)
    together = [b for rank in range(world_size) for b in numbers(samples, 4, rank, world_size)]
    assert together == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unusable_sample_is_left_out_and_no_other_takes_its_place(
    digit_shards, tmp_path, workers
):
    good, damaged = digit_shards.samples("train"), b"\xff\xd8\xff and no more"
    bad = {2: (damaged, "x"), 5: (good.read(5).image, " "), 6: (damaged, "x"), 7: (damaged, " ")}
    with ShardWriter(tmp_path / "faulty", "x", samples_per_shard=100) as writer:
        for number in range(10):
            image, caption = bad.get(number) or (good.read(number).image, f"caption {number}")
            writer.write(image, caption)
    samples, told = tar_samples(writer.shards[0]), []
    loader = loader_of(
        samples,
        tmp_path,
        sampler=InOrder(len(samples), 6),
        augment=False,
        workers=workers,
        told=told,
    )
    first, second = loader.epoch(0)
    assert first.numbers.tolist() == [0, 1, 3, 4]
    assert second.numbers.tolist() == [8, 9]
    assert len(first.images) == len(first.text.cu_seqlens) - 1 == 4
    assert [fault.place.key[-1] for fault in sorted(told)] == ["2", "5", "6", "7"]


def test_images_can_be_loaded_without_captions(digit_shards, tmp_path):
    samples = digit_shards.samples("train")
    loader = loader_of(samples, tmp_path, sampler=InOrder(20, 16), augment=False, read_caption=None)
    assert [len(batch.images) for batch in loader.epoch(0)] == [16, 4]
