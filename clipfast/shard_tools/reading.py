"""One pass through a shard, from its first byte to its last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from clipfast.data.sources.samples import Fault, Place, UnusableError
from clipfast.data.sources.storage import redacted
from clipfast.data.sources.tar_members import Member
from clipfast.data.sources.tar_scan import Entry, Flaw, scan, shown


class ShardReader:
    """Yields each sample.

    Args:
        shard: path or URL.
        file: the shard, opened for reading.
        advance: told how many bytes are done.

    Attributes:
        faults: what has been found so far.
    """

    def __init__(self, shard: str, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self.faults: list[Fault] = []
        self._shard, self._file, self._advance = redacted(shard), file, advance

    def __iter__(self) -> Iterator[Entry]:
        done = 0
        for found in scan(self._file):
            if isinstance(found, Flaw):
                self.faults.append(Fault(Place(self._shard, found.offset, found.key), found.reason))
                continue
            yield found
            end = max(member.offset + member.size for member in found.members.values())
            self._advance(end - done)
            done = end
        self._advance(os.fstat(self._file.fileno()).st_size - done)

    def read(self, member: Member) -> bytes:
        """Raises:
        UnusableError: it cannot be read.
        """
        try:
            content = os.pread(self._file.fileno(), member.size, member.offset)
        except OSError as error:
            raise UnusableError(f"cannot be read: {error.strerror}") from None
        if len(content) < member.size:
            raise UnusableError("cut short while it was read")
        return content

    def refuse(self, entry: Entry, error: UnusableError) -> None:
        """Counts a sample among the faults."""
        place = Place(self._shard, entry.image.offset, shown(entry.key))
        self.faults.append(Fault(place, str(error)))
