"""The order of 400 million samples on 256 ranks: what it costs a rank, and that it covers all.

``python -m clipfast_bench.feeding.order_at_scale [--samples 400e6 --ranks 256]`` makes shards of
unequal sizes, of which only the sizes exist. It measures ranks' samplers, walks a whole epoch of
all ranks, and opens as many shards that are holes. The data is simulated; seconds and bytes are
those of this machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from clipfast_bench.feeding.shards_at_scale import Opening, measure_opening
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from clipfast.data.sampler import Sampler, Shards

_SEED = 0
Progressed = Callable[[int, int], None]


class RankCost(NamedTuple):
    """What the order costs one rank.

    Attributes:
        seconds: until its sampler can give a step.
        bytes_held: of Python and numpy objects after some steps, the shards' sizes included.
        bytes_at_most: the same, while it made a step.
        seconds_per_step: to list the rank's samples of one.
    """

    seconds: float
    bytes_held: int
    bytes_at_most: int
    seconds_per_step: float


class Coverage(NamedTuple):
    """How often an epoch of all ranks has each sample.

    Attributes:
        steps: of the epoch.
        per_rank: samples of each rank and step.
        never, once, twice, more: how many samples come so often.
        first_repeat: the step in which a sample comes again for the first time; `steps` if none.
        lap: the step in which the shortest lane begins anew, before which none may come again.
    """

    steps: int
    per_rank: int
    never: int
    once: int
    twice: int
    more: int
    first_repeat: int
    lap: int

    @property
    def is_right(self) -> bool:
        """Each sample once, then only those of the last steps that go on from the beginning."""
        return self.never == 0 and self.more == 0 and self.first_repeat >= self.lap


def unequal_shards(samples: int, shards: int) -> NDArray[np.int64]:
    """Sizes that add up to `samples`, the largest three times the smallest."""
    sizes = np.random.default_rng(_SEED).uniform(0.5, 1.5, shards)
    ends = np.round(np.cumsum(sizes) * samples / sizes.sum()).astype(np.int64)
    return np.diff(ends, prepend=0)


def rank_cost(counts: NDArray[np.int64], batch_size: int, ranks: int, rank: int) -> RankCost:
    """Of one rank, over steps that are spread over the epoch."""
    began = time.perf_counter()
    sampler = sampler_of(counts, batch_size, rank, ranks)
    sampler.batch(0, 0)
    seconds = time.perf_counter() - began
    steps = np.linspace(0, sampler.steps_per_epoch - 1, 50).astype(int).tolist()
    began = time.perf_counter()
    for step in steps:
        sampler.batch(0, step)
    per_step = (time.perf_counter() - began) / len(steps)
    # Counting slows down, so that it is done by itself.
    tracemalloc.start()
    sampler = sampler_of(counts.copy(), batch_size, rank, ranks)
    for step in steps[:3]:
        sampler.batch(0, step)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return RankCost(seconds, held, most, per_step)


def check_ranks(counts: NDArray[np.int64], batch_size: int, ranks: int, steps: int = 3) -> None:
    """Refuses an order in which the ranks' parts, joined, are not the step of one process."""
    one = sampler_of(counts, batch_size, 0, 1)
    parts = [sampler_of(counts, batch_size, rank, ranks) for rank in range(ranks)]
    for step in np.linspace(0, one.steps_per_epoch - 1, steps).astype(int).tolist():
        rows = [part.batch(1, step) for part in parts]
        assert {len(row) for row in rows} == {batch_size // ranks}, "ranks take unequal parts"
        assert np.array_equal(np.concatenate(rows), one.batch(1, step)), "ranks take other samples"


def coverage(
    counts: NDArray[np.int64], batch_size: int, ranks: int, progressed: Progressed
) -> Coverage:
    """Counts the samples of a whole epoch, all ranks' parts at once, which `check_ranks` allows.

    Memory: a byte per sample.
    """
    sampler = sampler_of(counts, batch_size, 0, 1)
    times = np.zeros(sampler.samples, np.uint8)
    steps = first_repeat = sampler.steps_per_epoch
    for step in range(steps):
        numbers = sampler.batch(1, step)
        if first_repeat == steps and times[numbers].any():
            first_repeat = step
        times[numbers] += 1
        if step % 100 == 0:
            progressed(step, steps)
    assert times.sum(dtype=np.int64) == steps * batch_size, "a step has the same sample twice"
    per_lane = batch_size // sampler.order.lanes
    lap = sampler.samples // sampler.order.lanes // per_lane
    never, once, twice = (int(np.count_nonzero(times == n)) for n in range(3))
    more = sampler.samples - never - once - twice
    return Coverage(steps, batch_size // ranks, never, once, twice, more, first_repeat, lap)


def sampler_of(counts: NDArray[np.int64], batch_size: int, rank: int, ranks: int) -> Sampler:
    """A rank's, over shards of these sizes."""
    return Sampler.of(
        Shards(counts), batch_size, workers=1, seed=_SEED, rank=rank, world_size=ranks
    )


def main() -> None:
    args = _parse()
    samples, shards = int(args.samples), int(args.shards)
    counts = unequal_shards(samples, shards)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:

        def shown(what: str) -> Progressed:
            task = bar.add_task(what)
            return lambda done, total: bar.update(task, completed=done, total=total)

        costs = [
            rank_cost(counts, args.batch_size, args.ranks, rank)
            for rank in sorted({0, args.ranks // 2, args.ranks - 1})
        ]
        check_ranks(counts, args.batch_size, args.ranks)
        covered = coverage(counts, args.batch_size, args.ranks, shown("an epoch of all ranks"))
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            one_rank = sampler_of(counts, args.batch_size, 0, args.ranks)
            opening = measure_opening(Path(scratch), counts, one_rank, shown("the first rank"))
    print(f"{samples:,} samples in {shards:,} shards, {args.ranks} ranks of {covered.per_rank}")
    Console(width=100).print(_table(costs, covered, opening))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "samples": samples,
            "shards": shards,
            "ranks": args.ranks,
            "batch_size": args.batch_size,
            "sampler": [cost._asdict() for cost in costs],
            "coverage": covered._asdict(),
            "opening": opening._asdict(),
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"stored in {args.out}")
    if not covered.is_right:
        raise SystemExit("the epoch does not have each sample once before any comes again")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipfast_bench.feeding.order_at_scale", description=__doc__
    )
    add = parser.add_argument
    add("--samples", type=float, default=400e6, help="default: 400e6")
    add("--shards", type=float, default=40e3, help="default: 40e3")
    add("--ranks", type=int, default=256)
    add("--batch-size", type=int, default=32768, help="of all ranks together (default 32768)")
    add("--scratch", type=Path, metavar="DIR", help="for files that are removed again")
    add("--out", type=Path, metavar="FILE", help="store the figures as JSON")
    return parser.parse_args()


def _table(costs: list[RankCost], covered: Coverage, opening: Opening) -> Table:
    table = Table("what", "figure", title="The order at scale", title_justify="left")
    worst = RankCost(*(max(values) for values in zip(*costs, strict=True)))
    table.add_row("sampler: start of a rank", f"{1000 * worst.seconds:.1f} ms")
    table.add_row("sampler: held by a rank", _mib(worst.bytes_held))
    table.add_row("sampler: held at most", _mib(worst.bytes_at_most))
    table.add_row("sampler: a rank's step", f"{1000 * worst.seconds_per_step:.2f} ms")
    table.add_section()
    table.add_row("epoch: steps, the same on all ranks", f"{covered.steps:,}")
    table.add_row("epoch: samples that never come", f"{covered.never:,}")
    table.add_row("epoch: samples that come once", f"{covered.once:,}")
    table.add_row("epoch: samples that come twice, at the end", f"{covered.twice:,}")
    table.add_row("epoch: samples that come more often", f"{covered.more:,}")
    table.add_row("epoch: step of the first that comes again", f"{covered.first_repeat:,}")
    table.add_section()
    for what, figure in opening.rows():
        table.add_row(f"shards: {what}", figure)
    return table


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


if __name__ == "__main__":
    main()
