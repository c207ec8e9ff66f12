"""Shows how a run would deal samples to its processes, without starting it.

PATTERN is what --train-data takes, and the flags are the trainer's. The order is the trainer's own;
no image is read. Every step of the epoch is walked through: --steps shortens that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn, Progress

from clipfast.data.sampler import WHOLE, Sampler
from clipfast.data.sources.opening import add_source_flags, open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.tar_source import TarSource
from clipfast.errors import UserError
from clipfast.shard_tools.flags import console, counted

SUMMARY = "how a run would deal them to its processes, and how many could go on with it"


class Dealt(NamedTuple):
    """What the steps that were walked have.

    Attributes:
        steps: how many those are.
        times: (samples,) how often each comes.
        reads: (ranks, shards) whether a rank reads of a shard.
    """

    steps: int
    times: NDArray[np.uint16]
    reads: NDArray[np.bool_]

    def frequencies(self) -> dict[str, int]:
        """How many samples come never, once, twice, and more often."""
        never, once, twice = (int(np.count_nonzero(self.times == n)) for n in range(3))
        more = len(self.times) - never - once - twice
        return {"never": never, "once": once, "twice": twice, "more": more}


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pattern", metavar="PATTERN", help="the shards, or data of another kind")
    add("--world-size", type=int, required=True, metavar="N", help="processes")
    add("--batch-size", type=int, default=64, metavar="N", help="of a process (default 64)")
    add("--accum-freq", type=int, default=1, metavar="N", help="such batches in a step (default 1)")
    add(
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="the run's; the batches of an epoch are a multiple of it (default 4)",
    )
    add("--seed", type=int, default=0, help="the run's (default 0)")
    add("--train-num-samples", type=int, metavar="N", help="in an epoch (default: all)")
    add("--dataset-resampled", action="store_true", help="drawn with replacement")
    add("--train-data-upsampling-factors", metavar="FACTORS", help="of each source, joined by ::")
    add("--epoch", type=int, default=0, metavar="N", help="counted from 0 (default 0)")
    add("--steps", type=int, metavar="N", help="walk that many steps, not the whole epoch")
    add("--rank", type=int, metavar="N", help="list the shards that this process reads")
    add("--json", action="store_true", help="print JSON in place of sentences")
    add_source_flags(parser.add_argument_group("how to read the samples"))


def run(args: argparse.Namespace) -> int:
    if args.rank is not None and not 0 <= args.rank < args.world_size:
        raise UserError(f"--rank: expected 0 to {args.world_size - 1}; got {args.rank}")
    samples = open_samples(
        args,
        args.pattern,
        flag="PATTERN",
        factors=args.train_data_upsampling_factors,
        resampled=args.dataset_resampled,
        epoch_samples=args.train_num_samples,
    )
    sampler = _sampler(args, samples)
    dealt = walk(sampler, args.world_size, args.epoch, args.steps)
    found = _summary(sampler, args, dealt)
    if args.rank is not None:
        names = list(_shard_names(samples))
        found["shards_of_rank"] = [names[i] for i in np.flatnonzero(dealt.reads[args.rank])]
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(args, found)
    return 0


def _sampler(args: argparse.Namespace, samples: SampleSet) -> Sampler:
    """The order of the run, as it would start, of all its processes together."""
    order = Sampler.of(
        samples.shards,
        args.batch_size * args.world_size,
        args.workers,
        args.seed,
        args.train_num_samples,
        world_size=args.world_size,
        micro_batches=args.accum_freq,
    ).order
    return Sampler(samples.shards, order)


def walk(sampler: Sampler, ranks: int, epoch: int, most: int | None = None) -> Dealt:
    """Asks for every step of an epoch, or for the first ones.

    Args:
        sampler: of one process, which has what all ranks have, in their order.

    Memory: two bytes for a sample, one for a rank and shard.
    """
    counts = sampler.shards.counts
    ends = np.cumsum(counts)
    times = np.zeros(sampler.samples, np.uint16)
    reads = np.zeros((ranks, len(counts)), np.bool_)
    steps = min(sampler.steps_per_epoch, most or sampler.steps_per_epoch)
    owners = np.repeat(np.arange(ranks), sampler.order.batch_size // ranks)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), transient=True) as bar:
        for step in bar.track(range(steps), description="dealing"):
            numbers = sampler.batch(epoch, step)
            np.add.at(times, numbers, 1)
            reads[owners, np.searchsorted(ends, numbers, side="right")] = True
    return Dealt(steps, times, reads)


def _shard_names(samples: SampleSet) -> Iterator[str]:
    for source in samples.sources:
        if isinstance(source, TarSource):
            yield from source.shards
        else:
            yield from (f"{source.name}, part {i}" for i in range(len(source.counts)))


def _summary(sampler: Sampler, args: argparse.Namespace, dealt: Dealt) -> dict:
    shards = dealt.reads.sum(axis=1)
    return {
        "samples": sampler.samples,
        "shards": len(sampler.shards.counts),
        "world_size": args.world_size,
        "global_batch": sampler.order.batch_size,
        "steps_per_epoch": sampler.steps_per_epoch,
        "steps_walked": dealt.steps,
        "samples_by_times": dealt.frequencies(),
        "shards_of_a_rank": {
            "least": int(shards.min()),
            "mean": float(shards.mean()),
            "most": int(shards.max()),
        },
        "lanes": sampler.order.lanes,
        "world_sizes_that_can_go_on": sampler.order.world_sizes(),
    }


def _print(args: argparse.Namespace, found: dict) -> None:
    say = console().print
    steps, walked, ranks = found["steps_per_epoch"], found["steps_walked"], found["world_size"]
    say(f"{counted(found['samples'], 'sample')} in {counted(found['shards'], 'shard')}")
    product = f"{args.batch_size} × {args.accum_freq} × {ranks} = {found['global_batch']:,}"
    say(f"an epoch: {counted(steps, 'step')} of {product} samples, the same number on every rank")
    times = ", ".join(f"{count:,} {how}" for how, count in found["samples_by_times"].items())
    part = f"the first {counted(walked, 'step')}" if walked < steps else "all of them"
    say(f"how often a sample comes in {part}: {times}")
    least, mean, most = found["shards_of_a_rank"].values()
    say(f"shards that a rank reads there: {least:,} to {most:,}, {mean:,.1f} on average")
    if found["samples"] <= WHOLE:
        say(f"order: shuffled as a whole, as there are no more than {WHOLE:,} samples")
    else:
        say(f"order: {counted(found['lanes'], 'lane')} of shards, each shuffled by itself")
    sizes = found["world_sizes_that_can_go_on"]
    say(f"can go on inside an epoch: {', '.join(map(str, sizes))} ranks", soft_wrap=True)
    for name in found.get("shards_of_rank", []):
        say(name, soft_wrap=True)
