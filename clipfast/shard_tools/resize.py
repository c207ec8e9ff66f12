"""Copies shards with their large images made small, so that training decodes less.

PATTERN is a path, a URL or a brace list, as for --train-data; several are joined by "::".

Images whose short side is longer than SIDE become baseline JPEGs, 4:2:0, with a short side of SIDE;
others stay as they are, byte for byte. Keys, captions and all else keep their order. Random crops
need a SIDE somewhat above the model's image size.

What cannot be used is left out and listed in OUT_DIR/rejected.jsonl. Shards appear only when they
are whole; the same command passes over those that are there already, unless their original is
newer.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.progress import DownloadColumn

from clipfast.data.quarantine import Quarantine
from clipfast.data.sources.samples import Fault, UnusableError
from clipfast.data.sources.shard_writer import AddMember, new_shard
from clipfast.data.sources.storage import Storage, is_remote, redacted
from clipfast.data.sources.tar_scan import Entry
from clipfast.errors import UserError
from clipfast.shard_tools.crew import Crew
from clipfast.shard_tools.flags import (
    add_cache_flags,
    add_workers_flag,
    console,
    counted,
    expand,
    storage,
)
from clipfast.shard_tools.images import smaller
from clipfast.shard_tools.reading import ShardReader
from clipfast.shard_tools.settings import begin
from clipfast.shard_tools.tally import Tally

SUMMARY = "copies with smaller images, as baseline JPEGs"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pattern", metavar="PATTERN", help="the shards")
    add("out_dir", metavar="OUT_DIR", type=Path, help="where the copies go; created if absent")
    add("--side", type=int, default=256, help="pixels of the short side (default 256)")
    add("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (default 90)")
    add_workers_flag(parser)
    add_cache_flags(parser)


def run(args: argparse.Namespace) -> int:
    shards, store = expand(args.pattern), storage(args)
    copies = _copies(shards, args.out_dir)
    sizes = {shard: store.identity(shard).bytes for shard in shards}
    begin(args.out_dir / "resize.json", {"side": args.side, "quality": args.quality})
    todo = [shard for shard in shards if not _is_done(store, shard, copies[shard])]
    rejected = Quarantine(args.out_dir / "rejected.jsonl", 1.0, lambda fault: None)
    counts, tally = Counter[str](), Tally()
    total = sum(sizes[shard] for shard in todo)
    with Crew("resizing", total, args.workers, DownloadColumn()) as crew:

        def resize(shard: str) -> _Resized:
            return _resize(shard, copies[shard], store, rejected, crew.advance, args)

        for _, resized in crew.in_order(resize, todo):
            counts += resized.counts
            tally.extend(resized.faults)
    _report(sizes, copies, len(todo), counts, tally, args)
    return 0


def _copies(shards: Sequence[str], folder: Path) -> dict[str, Path]:
    copies: dict[str, Path] = {}
    for shard in shards:
        name = redacted(shard).removesuffix("?…").rpartition("/")[2]
        if folder / name in copies.values():
            raise UserError(f"shards: expected names that differ; got two called {name}")
        copies[shard] = folder / name
    return copies


def _is_done(store: Storage, shard: str, copy: Path) -> bool:
    if is_remote(shard) or not copy.is_file():
        return copy.is_file()
    return store.local(shard).stat().st_mtime_ns <= copy.stat().st_mtime_ns


class _Resized(NamedTuple):
    """Attributes:
    counts: "samples" in the copy, and of these "smaller" ones.
    faults: what is not in it.
    """

    counts: Counter[str]
    faults: list[Fault]


class _NothingLeft(Exception):
    """No sample of a shard can be used."""


def _resize(
    shard: str,
    copy: Path,
    store: Storage,
    rejected: Quarantine,
    advance: Callable[[int], None],
    args: argparse.Namespace,
) -> _Resized:
    counts = Counter[str]()
    with contextlib.suppress(_NothingLeft), store.open(shard) as file, new_shard(copy) as add:
        reader = ShardReader(shard, file, advance)
        for entry in reader:
            counts.update(_copy(reader, entry, add, args))
        for fault in reader.faults:  # before the shard is there, so that none is lost
            rejected.found(fault)
        if not counts["samples"]:
            raise _NothingLeft
    return _Resized(counts, reader.faults)


def _copy(
    reader: ShardReader, entry: Entry, add: AddMember, args: argparse.Namespace
) -> Sequence[str]:
    """What to count it as."""
    try:
        contents = {member: reader.read(member) for member in entry.members.values()}
        small = smaller(contents[entry.image], args.side, args.quality)
    except UnusableError as error:
        reader.refuse(entry, error)
        return ()
    for member, content in contents.items():
        if small is None or member != entry.image:
            add(member.name, content)
        else:
            is_jpeg = member.name.lower().endswith((".jpg", ".jpeg"))
            add(member.name if is_jpeg else f"{entry.key}.jpg", small)
    return ("samples",) if small is None else ("samples", "smaller")


def _report(
    sizes: dict[str, int],
    copies: dict[str, Path],
    done_now: int,
    counts: Counter[str],
    tally: Tally,
    args: argparse.Namespace,
) -> None:
    out = console()
    if tally.total:
        listed = args.out_dir / "rejected.jsonl"
        out.print(tally.table(f"{tally.total:,} left out, listed in {listed}"))
    whole = {shard: copy for shard, copy in copies.items() if copy.is_file()}
    if not whole:
        raise UserError(f"{args.pattern}: expected a sample that can be used; got none")
    before, after = sum(sizes[shard] for shard in whole), sum(_size(c) for c in whole.values())
    earlier = len(copies) - done_now
    there = f"; {counted(earlier, 'shard')} there already" if earlier else ""
    out.print(
        f"{counted(counts['samples'], 'sample')}, {counts['smaller']:,} of them made smaller, in "
        f"{counted(done_now, 'shard')}{there}",
        soft_wrap=True,
    )
    share = after / before if before else 0
    out.print(
        f"{decimal(before)} before, {decimal(after)} after ({share:.0%}): {args.out_dir}",
        soft_wrap=True,
    )


def _size(path: Path) -> int:
    return path.stat().st_size
