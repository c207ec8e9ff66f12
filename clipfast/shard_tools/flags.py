"""What the commands have in common: flags, and how they print."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from rich.console import Console

from clipfast.data.sources.shard_names import expand_shards, split_sources
from clipfast.data.sources.storage import Storage, StorageError
from clipfast.errors import UserError


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=int, default=cores, metavar="N", help="threads (default: one per core)"
    )


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Of shards by URL."""
    add = parser.add_argument
    add(
        "--data-cache",
        metavar="DIR",
        help="where shards of remote URLs are kept (default: ~/.cache/clipfast/data)",
    )
    add("--data-cache-gb", type=float, default=50.0, metavar="GB", help="at most (default 50)")


def expand(pattern: str) -> list[str]:
    """All shards of sources joined by ``::``.

    Raises:
        UserError: there is none, or the braces are unbalanced.
    """
    shards = [shard for source in split_sources(pattern) for shard in expand_shards(source)]
    if not shards:
        raise UserError(f"shards: expected the path of at least one; got {pattern!r}")
    return shards


def storage(args: argparse.Namespace) -> Storage:
    return Storage(Path(args.data_cache) if args.data_cache else None, args.data_cache_gb)


def size_of(store: Storage, shard: str) -> int:
    """In bytes; 0 where there is no such shard."""
    try:
        return store.identity(shard).bytes
    except StorageError:
        return 0


def console() -> Console:
    """Prints names as they are, brackets and all."""
    width = shutil.get_terminal_size((110, 40)).columns
    return Console(width=width, highlight=False, markup=False)


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + "s" * (number != 1)
