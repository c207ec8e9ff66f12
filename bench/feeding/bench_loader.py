"""Shards to training batches, beside open_clip's WebDataset pipeline, on the same cores.

Real photographs in real tars, read from memory. Both end in normalised floats and ids, as a model
on the CPU takes them, and both go through whole epochs: nothing is made before the clock starts.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, worst
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Samples, Subject
from clipfast_bench.inputs.captions import captions
from clipfast_bench.inputs.photos import KINDS, photos
from torch import Tensor

from clipfast import tokenize
from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder
from clipfast.data.images.normalize import CLIP_MEAN, CLIP_STD, Normalize
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
SMALL = "short side 256"
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
ALL_RIGHT = Answer(0.0, 2.001, "levels of 255")


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
        import open_clip
        from open_clip.transform import image_transform
        from open_clip_train.data import get_wds_dataset

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


class Expected:
    """open_clip's pixels of an evaluation, and its ids, by the number of the sample."""

    def __init__(self, data: Data) -> None:
        self.data = data
        loader = data.theirs(0, is_train=False)
        self.images, self.ids = (torch.cat(parts) for parts in zip(*loader, strict=True))

    def answer(self) -> Answer:
        """Of our loader's pixels, in levels of 255, and ids."""
        seen, answers = set(), []
        levels = 255 * torch.tensor(CLIP_STD).view(3, 1, 1)
        for batch in self.data.ours(0, augment=False).epoch(0):
            seen.update(batch.numbers.tolist())
            off = (self.data.normalize(batch.images) - self.images[batch.numbers]).abs() * levels
            answers.append(Answer(off.max().item(), ALL_RIGHT.allowed, ALL_RIGHT.of))
            ends = batch.text.cu_seqlens.tolist()
            for row, number in enumerate(batch.numbers.tolist()):
                tokens = batch.text.tokens[ends[row] : ends[row + 1]]
                padded = torch.nn.functional.pad(tokens, (0, self.ids.shape[1] - len(tokens)))
                differ = float((padded.long() != self.ids[number]).sum())
                answers.append(Answer(differ, 0.0, "ids"))
        missing = float(len(set(range(SAMPLES)) - seen))
        return worst([*answers, Answer(missing, 0.0, "samples that are missing")])


class PlainDali:
    """DALI's reader of WebDataset tars, its random crop, resize and normalisation; images alone."""

    def __init__(self, data: Data) -> None:
        from nvidia.dali import Pipeline, fn, types
        from nvidia.dali.plugin.pytorch import DALIGenericIterator

        shards = sorted(str(path) for path in data.folder.glob("*.tar"))
        pipeline = Pipeline(BATCH, num_threads=1, device_id=None, seed=0)
        augmentation = Augmentation()
        with pipeline:
            encoded, _ = fn.readers.webdataset(
                paths=shards, ext=["jpg", "txt"], random_shuffle=True, name="tars"
            )
            image = fn.decoders.image_random_crop(
                encoded,
                random_area=list(augmentation.scale),
                random_aspect_ratio=list(augmentation.ratio),
            )
            image = fn.resize(
                image, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True
            )
            image = fn.crop_mirror_normalize(
                image,
                dtype=types.FLOAT,
                output_layout="CHW",
                mean=[255 * m for m in CLIP_MEAN],
                std=[255 * s for s in CLIP_STD],
            )
            pipeline.set_outputs(image)
        self.batches = DALIGenericIterator(
            [pipeline], ["images"], reader_name="tars", auto_reset=True
        )

    def epoch(self) -> Iterator[Tensor]:
        return (batch[0]["images"] for batch in self.batches)


@pytest.mark.skipif(
    bool(peers.open_clip_train(torch.device("cpu"))),
    reason="needs open_clip's trainer, whose pixels and ids are the right ones",
)
@pytest.mark.parametrize(
    "kind",
    [
        case(kind, id=kind.replace("×", "x"), tier=FIRST if kind == SMALL else MORE)
        for kind in KINDS
    ],
)
def test_loader(contest, tmp_path, kind):
    """One thread of ours and one worker of theirs, each on one core with what it feeds."""
    data = Data(tmp_path, kind)
    expected = Expected(data)

    def ours() -> Entrant:
        loader = data.ours(1)
        return Entrant(lambda: take(data.normalized(loader)), expected.answer, SAMPLES)

    def theirs() -> Entrant:
        loader = data.theirs(1)
        return Entrant(lambda: take(images for images, _ in loader), lambda: ALL_RIGHT, SAMPLES)

    def raw() -> Entrant:
        loader = data.ours(1)
        return Entrant(lambda: take(batch.images for batch in loader.epoch(0)), units=SAMPLES)

    with on_cores(CORES[:1]):
        contest.hold(
            Subject("loader"),
            [
                Contender(OURS, ours),
                Contender("open_clip, webdataset", theirs, peers.open_clip_train),
                Contender("DALI, its own reader", lambda: plain_dali(data), peers.dali),
                Contender("for a GPU to normalise", raw, is_peer=False),
            ],
            rounds=ROUNDS,
            figures=figures,
        )


def plain_dali(data: Data) -> Entrant:
    dali = PlainDali(data)
    return Entrant(lambda: take(dali.epoch()), partial(brightness, dali, data), SAMPLES)


def brightness(dali: PlainDali, data: Data) -> Answer:
    """Random crops that cannot be repeated have the brightness of ours, in levels of 255."""
    means = []
    for batches in (dali.epoch(), data.normalized(data.ours(0))):
        means.append(torch.cat([batch.clone() for batch in batches]).mean().item())
    levels = 255 * sum(CLIP_STD) / 3
    return Answer(levels * abs(means[0] - means[1]), 10.0, "mean level of 255 of random crops")


def figures(samples: Samples) -> dict[str, float]:
    middle = {name: sorted(found)[len(found) // 2] for name, found in samples.items()}
    found = {"images/s": 1 / middle[OURS]}
    if "for a GPU to normalise" in middle:
        found["images/s, left for a GPU to normalise"] = 1 / middle["for a GPU to normalise"]
    return found


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores: not measured")
@pytest.mark.parametrize(
    "kind", [case(kind, id=kind.replace("×", "x"), tier=LARGE) for kind in KINDS]
)
def test_loader_threads(contest, tmp_path, kind):
    """Two threads on two cores; nobody takes the batches further, as on a GPU."""
    data = Data(tmp_path, kind)

    def run(threads: int) -> Entrant:
        loader = data.ours(threads)

        def epoch() -> None:
            with on_cores(CORES[:threads]):
                take(batch.images for batch in loader.epoch(0))

        return Entrant(epoch, units=SAMPLES)

    contest.hold(
        Subject("loader_threads", dtype="uint8"),
        [
            Contender(OURS, lambda: run(2)),
            Contender("one thread on one core", lambda: run(1), is_peer=False),
        ],
        rounds=ROUNDS,
        figures=threads_figures,
    )


def threads_figures(samples: Samples) -> dict[str, float]:
    two, one = (sorted(found)[len(found) // 2] for found in samples.values())
    return {"images/s": 1 / two, "gain of a second thread": one / two}
