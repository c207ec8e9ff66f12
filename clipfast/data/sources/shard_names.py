"""From what names the data on the command line to the names of its shards."""

from __future__ import annotations

import glob
import os
import re
from itertools import islice

from braceexpand import braceexpand

from clipfast.data.sources.storage import is_remote, redacted
from clipfast.errors import UserError

_MOST_SHARDS = 500_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
# The second colon pair of http://[fe80::1]/a.tar joins nothing.
_JOINT = re.compile(r"::(?![^\[\]/]*\])")


class ShardError(UserError):
    """Shards that are missing, cannot be read, or hold no sample."""


def split_sources(pattern: str) -> list[str]:
    """The patterns of the sources that ``::`` joins, without empty ones."""
    return [part for part in _JOINT.split(pattern) if part]


def expand_shards(pattern: str) -> list[str]:
    """The shards of a pattern such as ``data/a-{0000..0009}.tar::s3://bucket/b.tar``, which need
    not exist, or of local wildcards such as ``data/*.tar``, by name. A backslash before a brace
    takes it as it is.

    Raises:
        ShardError: no list of shards, or an endless one.
    """
    parts = split_sources(pattern)
    named = [_plain(shard) for part in parts for shard in _expand(part)]
    shards = [shard for name in named for shard in _matched(name)]
    if not shards:
        raise ShardError(f"shards: expected the path of at least one; got {pattern!r}")
    if len(shards) == len(parts):
        for shard in shards:
            if not is_remote(shard) and os.path.isdir(shard):
                _refuse_folder(shard)
    return shards


def base_name(shard: str) -> str:
    """The last part of a path or URL."""
    path = re.split(r"[?#]", shard, maxsplit=1)[0] if is_remote(shard) else shard
    return path.rpartition("/")[2]


def _expand(part: str) -> list[str]:
    if part.startswith("pipe:"):
        raise ShardError(
            f"shards: expected paths or URLs; got a command, {part!r}: commands are not run, name "
            "the shards by their URLs"
        )
    try:
        # Each range is written out by itself before the first shard is.
        longest = max((abs(int(a) - int(b)) for a, b in _RANGE.findall(part)), default=0)
        endless = longest >= _MOST_SHARDS
        shards = [] if endless else list(islice(braceexpand(part), _MOST_SHARDS + 1))
    except ValueError:
        raise ShardError(f"shards: expected balanced braces; got {part!r}") from None
    if endless or len(shards) > _MOST_SHARDS:
        raise ShardError(f"shards: expected at most {_MOST_SHARDS:,}; got more by {part!r}")
    return shards


def _plain(shard: str) -> str:
    if shard.startswith("pipe:"):
        raise ShardError(f"shards: expected paths or URLs; got a command, {redacted(shard)!r}")
    return shard.removeprefix("file://")


def _matched(name: str) -> list[str]:
    """What a wildcard stands for; a name that has none, or is itself a file's, for itself."""
    if is_remote(name) or not glob.has_magic(name) or os.path.exists(name):
        return [name]
    if not (found := sorted(glob.glob(name))):
        raise ShardError(f"shards: expected files that fit {name}; got none")
    return found


def _refuse_folder(folder: str) -> None:
    tars = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".tar"))
    holds = f"it holds {len(tars):,}, first {tars[0]}" if tars else "it holds none"
    raise ShardError(
        f"shards: expected the names of tars, such as {folder.rstrip('/')}/a-{{0000..0009}}.tar; "
        f"got the folder {folder}: {holds}"
    )
