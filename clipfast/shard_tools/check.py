"""Looks for every fault in shards; exits with 1 where there is one.

PATTERN is a path, a URL or a brace list, as for --train-data; several are joined by "::".

Reads all headers of the tars: truncated and damaged ones, samples without an image or a caption,
keys that come twice, hostile names. With --decode each image is decoded and each caption read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.progress import DownloadColumn

from clipfast.data.sources.samples import Fault, Place, UnusableError
from clipfast.data.sources.storage import Storage, StorageError, redacted
from clipfast.data.sources.tar_scan import Entry
from clipfast.data.text.captions import CaptionReader
from clipfast.shard_tools.crew import Crew
from clipfast.shard_tools.flags import (
    add_cache_flags,
    add_workers_flag,
    console,
    counted,
    expand,
    size_of,
    storage,
)
from clipfast.shard_tools.images import check_image
from clipfast.shard_tools.reading import ShardReader
from clipfast.shard_tools.tally import Tally

SUMMARY = "faults in shards: damaged, incomplete, undecodable"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pattern", metavar="PATTERN", help="the shards")
    add("--decode", action="store_true", help="decode every image and read every caption")
    add("--caption-key", metavar="FIELD", help="the field of a .json that holds the captions")
    add("--report", type=Path, metavar="FILE", help="list every fault in FILE, a line of JSON each")
    add("--examples", type=int, default=3, metavar="N", help="of each kind, to print (default 3)")
    add_workers_flag(parser)
    add_cache_flags(parser)


def run(args: argparse.Namespace) -> int:
    shards, store = expand(args.pattern), storage(args)
    size = sum(size_of(store, shard) for shard in shards)
    tally, samples = Tally(examples=args.examples), 0
    with (
        open(args.report, "w") if args.report else contextlib.nullcontext() as report,
        Crew("checking", size, args.workers, DownloadColumn()) as crew,
    ):

        def check(shard: str) -> _Checked:
            return _check(shard, store, crew.advance, args)

        for _, found in crew.in_order(check, shards):
            samples += found.samples
            tally.extend(found.faults)
            if report is not None:
                for fault in found.faults:
                    line = fault.place._asdict() | {"reason": fault.reason}
                    report.write(json.dumps(line) + "\n")
    whole, where = counted(samples, "whole sample"), counted(len(shards), "shard")
    _print(f"{whole} in {where}, {decimal(size)}", tally, args)
    return 1 if tally.total else 0


class _Checked(NamedTuple):
    """Attributes:
    samples: how many have no fault.
    faults: of the shard, in its order.
    """

    samples: int
    faults: list[Fault]


def _check(
    shard: str, store: Storage, advance: Callable[[int], None], args: argparse.Namespace
) -> _Checked:
    samples, faults = 0, list[Fault]()
    try:
        with store.open(shard) as file:
            reader = ShardReader(shard, file, advance)
            faults = reader.faults
            for entry in reader:
                try:
                    if args.decode:
                        _decode(reader, entry, args.caption_key)
                    samples += 1
                except UnusableError as error:
                    reader.refuse(entry, error)
    except (StorageError, OSError) as error:
        faults.append(Fault(Place(redacted(shard), 0, ""), f"cannot be read: {error}"))
    return _Checked(samples, faults)


def _decode(reader: ShardReader, entry: Entry, caption_key: str | None) -> None:
    check_image(reader.read(entry.image))
    captions = [member for member in (entry.text, entry.json) if member is not None]
    CaptionReader(caption_key).all([reader.read(captions[-1 if caption_key else 0])])


def _print(looked_at: str, tally: Tally, args: argparse.Namespace) -> None:
    out = console()
    out.print(looked_at, soft_wrap=True)
    if not tally.total:
        out.print("no faults" + "; images were not decoded: --decode does" * (not args.decode))
        return
    out.print(tally.table(counted(tally.total, "fault")))
    if args.report:
        out.print(f"written: {args.report}", soft_wrap=True)
