"""Samples of WebDataset tar shards, each read by its place."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO

import numpy as np

from clipfast.data.sources.image_files import is_shortage
from clipfast.data.sources.kept import Kept
from clipfast.data.sources.samples import Fault, Place, Sample, UnusableError
from clipfast.data.sources.shard_names import ShardError, base_name, expand_shards, split_sources
from clipfast.data.sources.storage import Storage, redacted
from clipfast.data.sources.tar_index import CHANGED, Indexes, Record, TarIndex
from clipfast.data.sources.tar_manifest import survey
from clipfast.data.sources.tar_scan import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS, shown

__all__ = ["ShardError", "TarSource", "expand_shards", "split_sources"]


class TarSource:
    """The samples of tars, one shard after the other.

    A sample needs an image (jpg, png, jpeg or webp) and a caption (txt or json). Shards are indexed
    once, and read through few files that are open at once; see `tar_index` and `tar_manifest`.

    Args:
        pattern: paths, URLs, brace lists of them.
        storage: gets the shards.
        prefer_json: takes the json of a sample that has a txt too.
        most_open: how many shards are open at once, in two files each. Default: an eighth of the
            files that the process may open, and 1024 at most.

    Raises:
        ShardError: a shard is missing or cannot be read, or there is no sample in any.
    """

    def __init__(
        self,
        pattern: str,
        storage: Storage,
        *,
        prefer_json: bool = False,
        most_open: int | None = None,
    ) -> None:
        self.shards = expand_shards(pattern)
        self.name = redacted(pattern)
        self._prefer_json = prefer_json
        self._indexes = Indexes(storage)
        known = survey(self.shards, self._indexes)
        self.counts = np.array([shard.samples for shard in known], np.int64)
        self._first = np.cumsum([0, *self.counts])
        self._crcs = np.array([shard.crc for shard in known], np.uint32)
        self._flawed = np.flatnonzero([shard.flaws for shard in known])
        self._identities = [shard.identity for shard in known]
        self._checked = np.zeros(len(known), np.bool_)
        most_open = most_open or _most_open()
        self._records = Kept(self._open_index, most_open)
        self._files = Kept(self._open_file, most_open)
        if not self._first[-1]:
            raise self._no_sample()

    @cached_property
    def fingerprint(self) -> str:
        """By the shards' names and sizes, and their members' names, places and sizes."""
        digest = hashlib.sha256()
        for shard, identity, samples, crc in zip(
            self.shards, self._identities, self.counts.tolist(), self._crcs.tolist(), strict=True
        ):
            digest.update(repr((base_name(shard), identity.bytes, samples, crc)).encode())
        return digest.hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        shard, inside = self._find(number)
        try:
            record = self._records.get(shard).record(inside)
            file = self._files.get(shard)
            offset, size = self._caption(record)
            caption = self._bytes(shard, file, offset, size)
            content = b""
            if image:
                content = self._bytes(shard, file, record.image_offset, record.image_size)
        except UnusableError as error:
            raise UnusableError(str(error), self.place(number)) from None
        return Sample(content, (caption,), self._place(shard, record))

    def place(self, number: int) -> Place:
        """See `Source.place`. Without the shard and its index, a sample is told by its number."""
        shard, inside = self._find(number)
        try:
            return self._place(shard, self._records.get(shard).record(inside))
        except UnusableError:
            return Place(redacted(self.shards[shard]), inside, f"sample {inside}")

    def faults(self) -> Iterator[Fault]:
        """See `Source.faults`; in the order of the shards."""
        for shard in self._flawed.tolist():
            name = redacted(self.shards[shard])
            try:
                flaws = self._open_index(shard).flaws
            except UnusableError as error:
                yield Fault(Place(name, 0, ""), str(error))
                continue
            for offset, key, reason in flaws:
                yield Fault(Place(name, offset, key), reason)

    def _find(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self._first[-1]:
            raise IndexError(f"number: expected one from 0 to {self._first[-1] - 1}; got {number}")
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return shard, int(number - self._first[shard])

    def _place(self, shard: int, record: Record) -> Place:
        key = shown(record.key.decode("utf-8", "surrogateescape"))
        return Place(redacted(self.shards[shard]), record.image_offset, key)

    def _caption(self, record: Record) -> tuple[int, int]:
        text = record.text_offset, record.text_size
        json = record.json_offset, record.json_size
        first, second = (json, text) if self._prefer_json else (text, json)
        return first if first[0] else second

    def _bytes(self, shard: int, file: OpenFile, offset: int, size: int) -> bytes:
        try:
            content = file.read(offset, size)
        except OSError as error:
            if is_shortage(error):
                raise ShardError(f"shard {self.shards[shard]}: {error.strerror}") from None
            reason = f"the shard cannot be read: {error.strerror}"
        else:
            if len(content) == size:
                return content
            reason = CHANGED
        self._files.fail(shard, reason)
        raise UnusableError(reason)

    def _open_file(self, shard: int) -> OpenFile:
        return OpenFile(self._indexes.open_shard(self.shards[shard], self._identities[shard]))

    def _open_index(self, shard: int) -> TarIndex:
        # Its checksum once: it is as long as the index.
        check = not self._checked[shard]
        index = self._indexes.get(self.shards[shard], self._identities[shard], check=check)
        if index.crc != self._crcs[shard] or len(index.records) != self.counts[shard]:
            raise UnusableError(CHANGED)
        self._checked[shard] = True
        return index

    def _no_sample(self) -> ShardError:
        first = redacted(self.shards[0])
        fault = next(self.faults(), None)
        why = "" if fault is None else f"; {fault.reason}"
        return ShardError(
            f"shards: expected samples of an image ({', '.join(IMAGE_EXTENSIONS)}) and a caption "
            f"({' or '.join(CAPTION_EXTENSIONS)}) next to it; got none in {len(self.shards):,} "
            f"shard(s), first {first}{why}"
        )


class OpenFile:
    """A file that is closed when nobody has it any more, so not while a thread reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __del__(self) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Less than `size` bytes where the file ends."""
        return os.pread(self._file.fileno(), size, offset)


def _most_open() -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(max(most // 16, 2), 1024) if most > 0 else 1024
