"""Makes shards of an image folder, a table or a Hugging Face dataset.

SOURCE is a folder of images with a .txt of the same name beside each, a .csv or .tsv, a .parquet, a
Hugging Face dataset saved to disk, or shards; several are joined by "::". Images are copied byte
for byte, unless --resize is given. Keys are the samples' running numbers in SOURCE. A sample with
several captions gets a .json with the list "captions" in place of a .txt.

What cannot be used is left out and listed in OUT_DIR/rejected.jsonl. Of an image that is not
resized only the header and the end are looked at: `clipfast shards check --decode` finds other
damage.

Shards appear only when they are whole. After an interruption, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.progress import MofNCompleteColumn

from clipfast.data.images.header import read_header
from clipfast.data.quarantine import Quarantine
from clipfast.data.sources.opening import add_source_flags, open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, Place, UnusableError
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.data.text.captions import CaptionReader
from clipfast.errors import UserError
from clipfast.shard_tools.crew import Crew
from clipfast.shard_tools.flags import add_workers_flag, console, counted
from clipfast.shard_tools.images import smaller
from clipfast.shard_tools.settings import begin
from clipfast.shard_tools.tally import Tally

SUMMARY = "shards of an image folder, a CSV, Parquet or Hugging Face dataset"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="where the images and captions are")
    add("out_dir", metavar="OUT_DIR", type=Path, help="where the shards go; created if absent")
    add("--samples-per-shard", type=int, default=10000, metavar="N", help="default 10000")
    add("--prefix", default="shard", help="the shards are PREFIX-000000.tar, … (default: shard)")
    add(
        "--resize",
        type=int,
        metavar="SIDE",
        help="make images whose short side is longer than SIDE pixels into JPEGs of that side",
    )
    add("--quality", type=int, default=90, help="of the JPEGs of --resize (default 90)")
    add_workers_flag(parser)
    add_source_flags(parser.add_argument_group("how to read SOURCE"))


class _Pair(NamedTuple):
    image: bytes
    captions: list[str]


def run(args: argparse.Namespace) -> int:
    samples = open_samples(args, args.source)
    folder: Path = args.out_dir
    settings = {
        "samples": len(samples),
        "fingerprint": samples.fingerprint,
        "caption_key": args.caption_key,
        "prefix": args.prefix,
        "samples_per_shard": args.samples_per_shard,
        "resize": args.resize,
        "quality": args.quality if args.resize else None,
    }
    begin(folder / "make.json", settings)
    done = _whole_shards(folder, args.prefix, args.samples_per_shard)
    rejected_file = folder / "rejected.jsonl"
    rejected = Quarantine(rejected_file, 1.0, lambda fault: None)
    for fault in samples.faults():
        rejected.found(fault)

    def pair(number: int) -> _Pair | Fault:
        return _pair(samples, number, args)

    numbers = range(done.next_number, len(samples))
    with (
        Crew("making shards", len(samples), args.workers, MofNCompleteColumn()) as crew,
        ShardWriter(folder, args.prefix, args.samples_per_shard, after=done.shards) as writer,
    ):
        crew.advance(done.next_number)
        for number, found in crew.in_order(pair, numbers):
            if isinstance(found, Fault):
                rejected.found(found)
            else:
                writer.write(found.image, found.captions, key=f"{number:09d}")
            crew.advance(1)
    _report(writer.shards, done.samples + writer.samples, rejected_file)
    return 0


def _pair(samples: SampleSet, number: int, args: argparse.Namespace) -> _Pair | Fault:
    try:
        sample = samples.read(number)
        captions = CaptionReader(args.caption_key).all(sample.captions)
        read_header(sample.image)
        small = smaller(sample.image, args.resize, args.quality) if args.resize else None
        return _Pair(small or sample.image, captions)
    except UnusableError as error:
        return Fault(error.place or samples.place(number), str(error))


class _Done(NamedTuple):
    """What an earlier run has left.

    Attributes:
        shards: whole ones, in order.
        samples: how many are in them.
        next_number: the first of the source that this earlier run did not come to.
    """

    shards: list[Path]
    samples: int
    next_number: int


def _whole_shards(folder: Path, prefix: str, samples_per_shard: int) -> _Done:
    shards: list[Path] = []
    while (path := folder / f"{prefix}-{len(shards):06d}.tar").is_file():
        shards.append(path)
    if not shards:
        return _Done([], 0, 0)
    with tarfile.open(shards[-1]) as tar:
        keys = sorted({name.partition(".")[0] for name in tar.getnames()})
    full = (len(shards) - 1) * samples_per_shard
    return _Done(shards, full + len(keys), int(keys[-1]) + 1)


def _report(shards: list[Path], samples: int, rejected: Path) -> None:
    out = console()
    tally = Tally(_listed(rejected))
    if tally.total:
        out.print(tally.table(f"{tally.total:,} not used, listed in {rejected}"))
    if not shards:
        raise UserError("expected a sample that can be used; got none")
    size = decimal(sum(path.stat().st_size for path in shards))
    out.print(f"{counted(samples, 'sample')}, {size}: {_brace_list(shards)}", soft_wrap=True)


def _listed(rejected: Path) -> Iterator[Fault]:
    for line in rejected.read_text().splitlines() if rejected.is_file() else ():
        with contextlib.suppress(ValueError):  # a crash may have cut a line
            entry = json.loads(line)
            reason = entry.pop("reason")
            yield Fault(Place(**entry), reason)


def _brace_list(shards: list[Path]) -> str:
    """All of them, as --train-data takes them."""
    first, last = (str(path).removesuffix(".tar") for path in (shards[0], shards[-1]))
    if first == last:
        return f"{first}.tar"
    return f"{first[:-6]}{{{first[-6:]}..{last[-6:]}}}.tar"
