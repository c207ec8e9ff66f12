"""Shards to training batches, beside open_clip's WebDataset pipeline, on the same cores.

Real photographs in real tars, read from memory. Both end in normalised floats and ids, as a model
on the CPU takes them, and both go through whole epochs: nothing is made before the clock starts.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import open_clip
import pytest
import torch
from clipfast_bench.bench_train_step import captions
from clipfast_bench.compare import interleave
from clipfast_bench.photos import KINDS, photos
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset
from torch import Tensor

from clipfast import tokenize
from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder
from clipfast.data.images.normalize import CLIP_STD, Normalize
from clipfast.data.loader import Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sampler import Sampler
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
from clipfast.data.text.captions import CaptionReader

SIZE, BATCH, SAMPLES, SHARDS = 224, 32, 256, 4
ROUNDS = 7
CORES = sorted(os.sched_getaffinity(0))


class Data:
    """Shards of photographs of one kind, and both ways to read them."""

    def __init__(self, folder, kind: str) -> None:
        self.folder = folder
        pair = photos(kind)
        with ShardWriter(folder, "photos", SAMPLES // SHARDS) as writer:
            for number, caption in enumerate(captions(SAMPLES)):
                writer.write(pair[number % len(pair)], caption)
        self.pattern = str(folder / f"photos-{{000000..{SHARDS - 1:06d}}}.tar")
        self.samples = SampleSet([TarSource(self.pattern, Storage())])
        self.normalize = Normalize()

    def ours(self, threads: int, *, augment: bool = True) -> Loader:
        return Loader(
            self.samples,
            Sampler.of(self.samples.shards, BATCH, workers=1, seed=0),
            decoder=choose_decoder(
                "native",
                size=SIZE,
                augmentation=Augmentation(),
                device=torch.device("cpu"),
                threads=threads,
                max_batch=BATCH,
            ),
            image_size=SIZE,
            read_caption=CaptionReader(),
            tokenize=lambda texts: tokenize(texts, packed=True),
            augment=augment,
            workers=threads,
            quarantine=Quarantine(self.folder / "quarantine.jsonl", 0.0, print),
        )

    def theirs(self, workers: int, *, is_train: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        args = Namespace(
            train_data=self.pattern,
            val_data=self.pattern,
            train_num_samples=SAMPLES,
            val_num_samples=SAMPLES,
            dataset_resampled=False,
            train_data_upsampling_factors=None,
            batch_size=BATCH,
            workers=workers,
            world_size=1,
            seed=0,
        )
        transform = image_transform(SIZE, is_train=is_train)
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        return get_wds_dataset(args, transform, is_train, tokenizer=tokenizer).dataloader

    def normalized(self, loader: Loader) -> Iterator[Tensor]:
        return (self.normalize(batch.images) for batch in loader.epoch(0))


def take(batches: Iterable[Tensor]) -> None:
    assert sum(map(len, batches)) == SAMPLES


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """This thread, and the threads and processes that it starts meanwhile."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def check(data: Data) -> None:
    """Refuses to time other answers than open_clip's: its evaluation's pixels and its ids."""
    loader = data.theirs(0, is_train=False)
    images, ids = (torch.cat(parts) for parts in zip(*loader, strict=True))
    tolerance = 2.001 / 255 / torch.tensor(CLIP_STD).view(3, 1, 1)
    seen = set()
    for batch in data.ours(0, augment=False).epoch(0):
        seen.update(batch.numbers.tolist())
        ours = data.normalize(batch.images)
        assert ((ours - images[batch.numbers]).abs() <= tolerance).all(), "other pixels"
        ends = batch.text.cu_seqlens.tolist()
        for row, number in enumerate(batch.numbers.tolist()):
            tokens = batch.text.tokens[ends[row] : ends[row + 1]]
            padded = torch.nn.functional.pad(tokens, (0, ids.shape[1] - len(tokens)))
            assert torch.equal(padded.long(), ids[number]), "other ids"
    assert seen == set(range(SAMPLES)), "samples are missing"


@pytest.mark.parametrize("kind", KINDS)
def test_loader(benchmark, tmp_path, kind):
    """One thread of ours and one worker of theirs, each on one core with what it feeds."""
    data = Data(tmp_path, kind)
    check(data)
    with on_cores(CORES[:1]):
        ours, theirs = data.ours(1), data.theirs(1)
        interleave(
            benchmark,
            lambda: take(data.normalized(ours)),
            {
                "open_clip 3.3.0": lambda: take(images for images, _ in theirs),
                "ours, left for a GPU to normalise,": lambda: take(b.images for b in ours.epoch(0)),
            },
            rounds=ROUNDS,
        )
        if benchmark.stats is not None:
            rate = SAMPLES / benchmark.stats.stats.median
            benchmark.extra_info["figures"] = {"images/s": rate}


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores: not measured")
@pytest.mark.parametrize("kind", KINDS)
def test_loader_threads(benchmark, tmp_path, kind):
    """Two threads on two cores; nobody takes the batches further, as on a GPU."""
    data = Data(tmp_path, kind)

    def run(threads: int) -> Callable[[], None]:
        loader = data.ours(threads)

        def epoch() -> None:
            with on_cores(CORES[:threads]):
                take(batch.images for batch in loader.epoch(0))

        return epoch

    interleave(benchmark, run(2), {"one thread on one core": run(1)}, rounds=ROUNDS)
    if benchmark.stats is not None:
        rate = SAMPLES / benchmark.stats.stats.median
        benchmark.extra_info["figures"] = {"images/s": rate}
