"""Where each sample of a shard is: found once by a scan, kept in a small file, mapped into memory.

The file: the length of a header in eight bytes; the header, a JSON document; a record for each
sample; the flaws, a JSON list. All numbers are little-endian. It is found beside its shard under
the shard's name and ``.clipfast-index``; for remote shards, and where it cannot be written there,
in the folder ``indexes`` of the storage's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfast.data.sources.image_files import is_shortage
from clipfast.data.sources.samples import UnusableError
from clipfast.data.sources.shard_names import ShardError, base_name
from clipfast.data.sources.storage import Identity, Storage, StorageError, is_remote, redacted
from clipfast.data.sources.tar_members import Member
from clipfast.data.sources.tar_scan import Entry, Flaw, scan

__all__ = ["Indexes", "Record", "ShardError", "TarIndex"]

SUFFIX = ".clipfast-index"
GONE = "the shard has gone since it was indexed"
CHANGED = "the shard has changed since it was indexed"
_VERSION = 1
_LENGTH = 8  # bytes of the header's length
_MOST_FLAWS = 1000


class Record(NamedTuple):
    """Where a sample is in its shard.

    Attributes:
        text_offset, json_offset: 0 where there is none.
        key: UTF-8, as far as the name in the tar is.
    """

    image_offset: int
    image_size: int
    text_offset: int
    text_size: int
    json_offset: int
    json_size: int
    key: bytes


class TarIndex(NamedTuple):
    """Attributes:
    identity: of the shard.
    crc: CRC-32 of the records.
    records: (samples,) of `record_type`.
    flaw_list: the flaws as they are in the file.
    """

    identity: Identity
    crc: int
    records: NDArray[Any]
    flaw_list: bytes | NDArray[np.uint8]

    def record(self, number: int) -> Record:
        return Record(*self.records[number].item())

    @property
    def flaws(self) -> list[Flaw]:
        return [Flaw(*flaw) for flaw in json.loads(bytes(self.flaw_list))]


def record_type(key_bytes: int) -> np.dtype[Any]:
    """Of a shard whose longest key has so many bytes."""
    parts = [
        part
        for name in ("image", "text", "json")
        for part in ((f"{name}_offset", "<i8"), (f"{name}_size", "<u4"))
    ]
    return np.dtype([*parts, ("key", f"S{key_bytes}")])


class Indexes:
    """The indexes of shards, wherever they are; safe from several threads and processes.

    Args:
        storage: gets shards, and has the cache.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.folder = storage.folder / "indexes"

    def get(self, shard: str, identity: Identity, *, check: bool = True) -> TarIndex:
        """A shard's index, which is made where there is none that is whole and of this file.

        Args:
            identity: of the shard.
            check: False leaves the checksum of an index that is found unchecked.

        Raises:
            UnusableError: the shard has gone, is another one by now, or cannot be read.
        """
        for path in self.places(shard, SUFFIX):
            if (found := read_index(path, identity, check=check)) is not None:
                return found
        index = self._fetch(shard, identity) or self._make(shard, identity)
        self.keep(shard, SUFFIX, index_bytes(index))
        return index

    def open_shard(self, shard: str, identity: Identity) -> BinaryIO:
        """The shard's file, if it is still the same.

        Raises:
            UnusableError: it has gone, is another one by now, or cannot be read.
            ShardError: no file can be opened any more.
        """
        try:
            file = self.storage.open(shard)
        except StorageError as error:
            cause = error.__context__
            if isinstance(cause, OSError) and is_shortage(cause):
                raise ShardError(f"shard {redacted(shard)}: {cause.strerror}") from None
            if not is_remote(shard) and not os.path.exists(shard):
                raise UnusableError(GONE) from None
            raise UnusableError(f"the shard cannot be had: {error}") from None
        if not self._is_same(shard, file, identity):
            file.close()
            raise UnusableError(CHANGED)
        return file

    def places(self, name: str, suffix: str) -> Iterator[Path]:
        """Where what belongs to a shard or folder is kept, the best place first."""
        local = not is_remote(name)
        if local:
            yield Path(f"{name}{suffix}")
        full = os.path.abspath(name) if local else name
        digest = hashlib.sha256(full.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", base_name(name))[-80:]
        yield self.folder / f"{digest}-{readable}{suffix}"

    def keep(self, name: str, suffix: str, content: bytes) -> None:
        """Writes to the first of `places` where that is possible, whole or not at all."""
        for path in self.places(name, suffix):
            with contextlib.suppress(OSError):
                if path.parent == self.folder:
                    self.folder.mkdir(parents=True, exist_ok=True)
                _write(path, content)
                return

    def _is_same(self, shard: str, file: BinaryIO, identity: Identity) -> bool:
        """The storage itself checks what is remote, and then changes the time."""
        stat = os.fstat(file.fileno())
        same_time = is_remote(shard) or str(stat.st_mtime_ns) == identity.stamp
        return same_time and stat.st_size == identity.bytes

    def _fetch(self, shard: str, identity: Identity) -> TarIndex | None:
        """The index that is beside a remote shard; of the shard it knows but the size."""
        if not is_remote(shard) or "?" in shard:
            return None
        try:
            path = self.storage.local(f"{shard}{SUFFIX}")
        except StorageError:
            return None
        found = read_index(path, identity, any_stamp=True)
        return None if found is None else found._replace(identity=identity)

    def _make(self, shard: str, identity: Identity) -> TarIndex:
        with self.open_shard(shard, identity) as file:
            try:
                index = make_index(scan(file), identity)
            except OSError as error:
                raise UnusableError(f"the shard cannot be read: {error.strerror}") from None
            if not self._is_same(shard, file, identity):
                raise UnusableError(CHANGED)
        return index


def make_index(found: Iterable[Entry | Flaw], identity: Identity) -> TarIndex:
    """The index of a shard with these samples and flaws."""
    rows, flaws, more = [], list[Flaw](), 0
    for entry in found:
        if isinstance(entry, Entry):
            rows.append(_record(entry))
        elif len(flaws) < _MOST_FLAWS:
            flaws.append(entry)
        else:
            more += 1
    if more:
        flaws.append(Flaw(flaws[-1].offset, "", f"and {more:,} more flaws, which are not listed"))
    width = max((len(row.key) for row in rows), default=1)
    records = np.array([tuple(row) for row in rows], record_type(width))
    return TarIndex(identity, zlib.crc32(records.tobytes()), records, json.dumps(flaws).encode())


def _record(entry: Entry) -> Record:
    def where(member: Member | None) -> tuple[int, int]:
        return (0, 0) if member is None else (member.offset, member.size)

    key = entry.key.encode("utf-8", "surrogateescape")
    return Record(*where(entry.image), *where(entry.text), *where(entry.json), key)


def index_bytes(index: TarIndex) -> bytes:
    """The file's content."""
    about = {
        "version": _VERSION,
        "bytes": index.identity.bytes,
        "stamp": index.identity.stamp,
        "samples": len(index.records),
        "key_bytes": index.records.dtype["key"].itemsize,
        "crc": index.crc,
        "flaws_bytes": len(index.flaw_list),
    }
    header = json.dumps(about).encode()
    header += b" " * (-(_LENGTH + len(header)) % 64)
    length = len(header).to_bytes(_LENGTH, "little")
    return length + header + index.records.tobytes() + bytes(index.flaw_list)


def read_index(
    path: Path, identity: Identity, *, check: bool = True, any_stamp: bool = False
) -> TarIndex | None:
    """The index in a file, mapped into memory; None where that is not whole, or of another shard.

    Such files are replaced and never written to, so that a map stays whole.

    Args:
        check: the records' checksum too.
        any_stamp: takes the index of any shard of the same size.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(mapped, np.uint8)
        begin = _LENGTH + int.from_bytes(content[:_LENGTH].tobytes(), "little")
        about = json.loads(content[_LENGTH:begin].tobytes())
        kind = record_type(about["key_bytes"])
        end = begin + about["samples"] * kind.itemsize
        if (
            about["version"] != _VERSION
            or about["bytes"] != identity.bytes
            or not (any_stamp or about["stamp"] == identity.stamp)
            or len(content) != end + about["flaws_bytes"]
            or (check and zlib.crc32(content[begin:end].data) != about["crc"])
        ):
            return None
        records = content[begin:end].view(kind)
        return TarIndex(identity, about["crc"], records, content[end:])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        # Not forced to the disk: one that a crash cuts short is made anew.
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
