"""The memory of a long run: what 100,000 samples leave behind."""

import ctypes
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import SIZE, loader_of, tar_samples
from PIL import Image

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder, has_dali
from clipfast.data.sampler import Sampler
from clipfast.data.sources.shard_writer import ShardWriter

SAMPLES, BATCH = 1000, 250
EPOCHS, EPOCH = 10, 10_000
# DALI keeps freed buffers, more or fewer from one epoch to the next.
MOST_GROWTH = {"native": 4 << 20, "dali": 16 << 20}


def resident_bytes():
    # What is free already, but not yet given back, comes and goes by tens of MiB under DALI.
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def noise_jpeg(random):
    """Of its own size, so that no two are stored and decoded alike."""
    height, width = random.integers(24, 64, 2)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["native", "dali"])
def test_a_long_run_keeps_nothing_of_the_samples_it_has_loaded(decoder, tmp_path):
    if decoder == "dali" and not has_dali():
        pytest.skip("NVIDIA DALI is not installed")
    random = np.random.default_rng(0)
    with ShardWriter(tmp_path, "noise", SAMPLES // 4) as writer:
        for number in range(SAMPLES):
            writer.write(noise_jpeg(random), f"noise of number {number}, {random.bytes(8).hex()}")
    samples = tar_samples(tmp_path / "noise-{000000..000003}.tar")
    loader = loader_of(
        samples,
        tmp_path,
        sampler=Sampler.of(samples.shards, BATCH, workers=1, seed=0, epoch_samples=EPOCH),
        decoder=choose_decoder(
            decoder,
            size=SIZE,
            augmentation=Augmentation(),
            device=torch.device("cpu"),
            threads=2,
            max_batch=BATCH,
        ),
    )
    resident = []
    for epoch in range(EPOCHS):
        # What is under way differs from batch to batch; what is kept is there at all times.
        readings = [resident_bytes() for step, _ in enumerate(loader.epoch(epoch)) if step % 4 == 0]
        assert len(readings) == EPOCH // BATCH // 4
        resident.append(min(readings))
    # In the first epoch buffers grow to the largest batch.
    early, late = min(resident[1 : EPOCHS // 2]), min(resident[EPOCHS // 2 :])
    assert late - early <= MOST_GROWTH[decoder]
