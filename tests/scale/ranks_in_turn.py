"""Ranks of a run one after the other in one process: as many as a test wants.

A rank's parts are the trainer's own, made by its own code. What is missing is talk: what rank 0
would tell the others, each finds out for itself, and what all would tell each other is this one's
word alone. Which samples a rank reads, from which files and in which order, needs no talk. What
collectives give does, and is not shown here.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loading import loader_of
from numpy.typing import NDArray
from PIL import Image

from clipfast.data.batch import Batch
from clipfast.data.loader import Loader
from clipfast.data.sampler import Sampler
from clipfast.data.sources.opening import open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.shard_writer import new_shard
from clipfast.ranks.world import World
from clipfast.train.setup import make_sampler

GLOBAL_BATCH = 512


@dataclass(frozen=True)
class InTurn(World):
    """A rank that finds out for itself what rank 0 would have told it."""

    is_main = True


class Rank(NamedTuple):
    """The parts of one rank that have to do with data."""

    samples: SampleSet
    sampler: Sampler
    loader: Loader


def write_shards(folder: Path, prefix: str, sizes: list[int]) -> str:
    """Tars of so many pairs each, whose captions name them; the pattern that names the tars."""
    images = [_jpeg(colour) for colour in ("red", "green", "blue", "white")]
    for shard, size in enumerate(sizes):
        with new_shard(folder / f"{prefix}-{shard:06d}.tar") as add:
            for place in range(size):
                add(f"{place:03d}.jpg", images[place % 4])
                add(f"{place:03d}.txt", f"{prefix} {shard} {place}".encode())
    return f"{folder}/{prefix}-{{000000..{len(sizes) - 1:06d}}}.tar"


def captions(prefix: str, sizes: list[int]) -> list[str]:
    """Those of `write_shards`, by the samples' numbers."""
    return [f"{prefix} {shard} {place}" for shard, n in enumerate(sizes) for place in range(n)]


def _jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def open_data(args: argparse.Namespace) -> SampleSet:
    return open_samples(
        args,
        args.train_data,
        factors=args.train_data_upsampling_factors,
        resampled=args.dataset_resampled,
        epoch_samples=args.train_num_samples,
    )


def make_rank(args: argparse.Namespace, rank: int, world_size: int, folder: Path) -> Rank:
    """Args:
    folder: for quarantine.jsonl.
    """
    samples = open_data(args)
    sampler = make_sampler(args, samples, InTurn(rank, world_size))
    return Rank(samples, sampler, loader_on(samples, sampler, folder))


def loader_on(samples: SampleSet, sampler: Sampler, folder: Path) -> Loader:
    return loader_of(samples, folder, sampler=sampler, workers=0)


class Epoch(NamedTuple):
    """What all ranks read in one epoch.

    Attributes:
        numbers: (steps, ranks, own) int64, of the samples.
        texts: of the samples, by step and rank, as token ids in one row after the other.
        opened_at_start: by rank, the shards that it opened before its first step.
        opened: by rank, all that it opened.
    """

    numbers: NDArray[np.int64]
    texts: list[list[Any]]
    opened_at_start: list[set[str]]
    opened: list[set[str]]


def read_epoch(args: argparse.Namespace, world_size: int, folder: Path, epoch: int = 0) -> Epoch:
    """Has every rank read the epoch; shards must have been indexed."""
    by_rank: list[list[Batch]] = []
    at_start, opened = [], []
    for rank in range(world_size):
        with opened_shards() as first:
            parts = make_rank(args, rank, world_size, folder)
        with opened_shards() as later:
            by_rank.append(list(parts.loader.epoch(epoch)))
        at_start.append(first)
        opened.append(first | later)
    steps = {len(batches) for batches in by_rank}
    assert len(steps) == 1, f"ranks take unequal numbers of steps: {steps}"
    in_steps = list(zip(*by_rank, strict=True))
    return Epoch(
        np.array([[batch.numbers for batch in step] for step in in_steps]),
        [[batch.text.tokens for batch in step] for step in in_steps],
        at_start,
        opened,
    )


_watching: list[set[str]] = []


@contextmanager
def opened_shards() -> Iterator[set[str]]:
    """The names of the tars that this process opens, or whose index, as Python itself tells."""
    if not _hooked:
        sys.addaudithook(_note)  # there is no way to remove one
        _hooked.append(True)
    names = set[str]()
    _watching.append(names)
    try:
        yield names
    finally:
        _watching.remove(names)


_hooked: list[bool] = []


def _note(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(args[0], str | os.PathLike):
        name = Path(args[0]).name
        if ".tar" in name:
            for names in _watching:
                names.add(name.partition(".tar")[0])
