"""How many samples each of many shards has: one small file in each folder of them tells it.

``clipfast-manifest.json`` has of each shard what its index says in short, so that a start opens no
index. An entry counts as long as its shard is the same file.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import Progress

from clipfast.data.sources.samples import UnusableError
from clipfast.data.sources.shard_names import ShardError, base_name
from clipfast.data.sources.storage import Identity, Storage, StorageError, is_remote, redacted
from clipfast.data.sources.tar_index import Indexes

Item = TypeVar("Item")
Result = TypeVar("Result")

MANIFEST = "clipfast-manifest.json"
_VERSION = 1
# They wait for disks and servers: more than there are cores.
_THREADS = 16
_LOOKED_UP_AT_ONCE = 256
_FEW = 4


class Known(NamedTuple):
    """A shard's index in short.

    Attributes:
        identity: of the shard.
        samples: how many it has.
        crc: of their records.
        flaws: how many are listed.
    """

    identity: Identity
    samples: int
    crc: int
    flaws: int


def survey(shards: Sequence[str], indexes: Indexes) -> list[Known]:
    """What is known of each shard. Those without an index are indexed, and a progress bar tells.

    Raises:
        ShardError: a shard is missing or cannot be read.
    """
    identities = _identities(shards, indexes.storage)
    folders = defaultdict[str, list[int]](list)
    for i, shard in enumerate(shards):
        folders[_folder(shard)].append(i)
    known: list[Known | None] = [None] * len(shards)
    for folder, numbers in folders.items():
        for manifest in _listed(folder, indexes):
            for i in numbers:
                known[i] = known[i] or _known(manifest, shards[i], identities[i])
            if all(known[i] for i in numbers):
                break
    missing = {i for i, entry in enumerate(known) if entry is None}

    def index(i: int) -> None:
        known[i] = _in_short(indexes, shards[i], identities[i])

    # Each process takes its own way, and finds what others have made meanwhile.
    _work(index, random.Random(os.urandom(8)).sample(sorted(missing), len(missing)))
    whole = [entry for entry in known if entry is not None]
    if len(shards) > 1:
        for folder, numbers in folders.items():
            if not missing.isdisjoint(numbers):
                _list({base_name(shards[i]): whole[i] for i in numbers}, folder, indexes)
    return whole


def _identities(shards: Sequence[str], storage: Storage) -> list[Identity]:
    at_once = 1 if any(map(is_remote, shards)) else _LOOKED_UP_AT_ONCE
    chunks = [shards[i : i + at_once] for i in range(0, len(shards), at_once)]
    try:
        with ThreadPoolExecutor(min(_THREADS, len(chunks)), "clipfast-shards") as pool:
            found = pool.map(lambda chunk: list(map(storage.identity, chunk)), chunks)
            return [identity for part in found for identity in part]
    except StorageError as error:
        raise ShardError(f"shard {error}") from None


def _in_short(indexes: Indexes, shard: str, identity: Identity) -> Known:
    try:
        index = indexes.get(shard, identity)
    except UnusableError as error:
        raise ShardError(f"shard {redacted(shard)}: {error}") from None
    return Known(identity, len(index.records), index.crc, len(index.flaws))


def _work(task: Callable[[int], None], numbers: Sequence[int]) -> None:
    console = Console(stderr=True)
    hidden = len(numbers) < _FEW or not console.is_terminal
    pool = ThreadPoolExecutor(_THREADS, "clipfast-shards")
    try:
        with Progress(console=console, transient=True, disable=hidden) as bar:
            done = pool.map(task, numbers)
            for _ in bar.track(done, len(numbers), description="indexing shards"):
                pass
    finally:
        pool.shutdown(cancel_futures=True)


def _folder(shard: str) -> str:
    """With its slash, if it has one."""
    path = shard.partition("?")[0] if is_remote(shard) else shard
    return path[: len(path) - len(base_name(shard))]


def _listed(folder: str, indexes: Indexes) -> Iterator[_Manifest]:
    """The manifests that may know a folder's shards, the best first."""
    for path in indexes.places(folder, MANIFEST):
        yield _Manifest(_entries(path), any_stamp=False)
    if is_remote(folder):
        try:
            beside = indexes.storage.local(f"{folder}{MANIFEST}")
        except StorageError:
            return
        yield _Manifest(_entries(beside), any_stamp=True)


class _Manifest(NamedTuple):
    """Attributes:
    any_stamp: the stamps are not of these files, but of those that they are copies of.
    """

    entries: dict[str, Any]
    any_stamp: bool


def _known(manifest: _Manifest, shard: str, identity: Identity) -> Known | None:
    try:
        entry = manifest.entries[base_name(shard)]
        same = entry["bytes"] == identity.bytes
        if same and (manifest.any_stamp or entry["stamp"] == identity.stamp):
            return Known(identity, *(int(entry[field]) for field in Known._fields[1:]))
    except (LookupError, TypeError, ValueError):
        pass
    return None


def _entries(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        entries = content["shards"] if content["version"] == _VERSION else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _list(shards: dict[str, Known], folder: str, indexes: Indexes) -> None:
    """Adds to the folder's manifest, if one can be written."""
    entries = dict[str, Any]()
    for path in reversed(list(indexes.places(folder, MANIFEST))):
        entries |= _entries(path)
    for name, (identity, *counts) in shards.items():
        fields = dict(zip(Known._fields[1:], counts, strict=True))
        entries[name] = {"bytes": identity.bytes, "stamp": identity.stamp} | fields
    content = json.dumps({"version": _VERSION, "shards": entries}, indent=0)
    indexes.keep(folder, MANIFEST, content.encode())
