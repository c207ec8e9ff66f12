"""Samples of tables: a row names an image, or holds it, and its captions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipfast.data.sources.image_files import check_size, read_file
from clipfast.data.sources.row_files import Row, RowFile
from clipfast.data.sources.samples import Fault, Place, Sample, UnusableError
from clipfast.data.sources.storage import Storage, StorageError, is_remote, redacted

# Rows that count as a shard where any order is read equally fast: few, for they stay together when
# the order of shards is drawn.
BLOCK = 256
# Rows in which the folder is looked for that their paths start from.
_PROBED = 1000


def blocks(samples: int) -> NDArray[np.int64]:
    """How many samples each shard has where any order is read equally fast."""
    counts = np.full(-(-samples // BLOCK), BLOCK, np.int64)
    if samples % BLOCK:
        counts[-1] = samples % BLOCK
    return counts


class Table(Protocol):
    """Attributes:
    name: path or URL.
    counts: (shards,) rows.
    fingerprint: other for other rows.
    """

    name: str
    counts: NDArray[np.int64]
    fingerprint: str

    def row(self, number: int, *, image: bool) -> Row:
        """Raises:
        UnusableError: this row cannot be read.
        UserError: no row can be read any more.
        """

    def key(self, number: int) -> str:
        """What row `number` calls its sample."""

    def paths(self) -> Iterable[bytes]:
        """Of the images that it does not hold itself."""


class PathTable:
    """A table whose rows name images.

    Args:
        name: path or URL.
        rows: as they were converted.
    """

    def __init__(self, name: str, rows: RowFile) -> None:
        self.name, self._rows = name, rows
        self.counts = blocks(len(rows))
        self.fingerprint = f"{len(rows)} {rows.checksum}"

    def row(self, number: int, *, image: bool) -> Row:
        row = self._rows.row(number)
        if row.path is None:
            raise UnusableError(row.captions[0].decode())
        return row

    def key(self, number: int) -> str:
        path = self._rows.row(number).path or b""
        return redacted(path.decode("utf-8", "replace"))

    def paths(self) -> Iterator[bytes]:
        return (self._rows.row(number).path or b"" for number in range(len(self._rows)))


class TableSource:
    """The rows of tables, one table after the other.

    Args:
        name: of them together.
        tables: in the order that numbers their rows.
        storage: gets images by URL.
    """

    def __init__(self, name: str, tables: Sequence[Table], storage: Storage) -> None:
        self.name, self._tables = name, list(tables)
        self._images = [_Images(table, storage) for table in tables]
        self._first = np.cumsum([0, *(int(table.counts.sum()) for table in tables)])
        self.counts = np.concatenate([table.counts for table in tables])

    @cached_property
    def fingerprint(self) -> str:
        """By the rows' text, or the sizes of the images that the tables hold."""
        text = "\n".join(table.fingerprint for table in self._tables)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        at, inside = self._find(number)
        table = self._tables[at]
        try:
            row = table.row(inside, image=image)
            place = self.place(number)
            if not row.captions:
                raise UnusableError("no caption")
            if not image:
                return Sample(b"", row.captions, place)
            if row.image is not None:
                check_size(len(row.image), place)
                return Sample(row.image, row.captions, place)
            if not row.path:
                raise UnusableError("no image")
            return Sample(self._images[at].read(row.path, place), row.captions, place)
        except UnusableError as error:
            error.place = error.place or self.place(number)
            raise

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        at, inside = self._find(number)
        table = self._tables[at]
        return Place(redacted(table.name), inside, table.key(inside))

    def paths(self) -> Iterator[bytes]:
        """Of the images, row by row; none of tables that hold these themselves."""
        for table in self._tables:
            yield from table.paths()

    def faults(self) -> Iterator[Fault]:
        """None: rows that cannot be used are found when they are read."""
        return iter(())

    def _find(self, number: int) -> tuple[int, int]:
        at = int(np.searchsorted(self._first, number, side="right")) - 1
        return at, int(number - self._first[at])


class _Images:
    """The images that a table names.

    Relative paths start from the current folder, as in open_clip, if the first of them that exists
    at all exists there; otherwise from the table's.
    """

    def __init__(self, table: Table, storage: Storage) -> None:
        self._table, self._storage = table, storage

    def read(self, path: bytes, place: Place) -> bytes:
        path = path.removeprefix(b"file://")
        if b"://" in path and is_remote(os.fsdecode(path)):
            return self._fetch(os.fsdecode(path), place)
        folder = self._folder
        if os.path.isabs(path) or not is_remote(folder):
            return read_file(os.path.join(os.fsencode(folder), path), place)
        return self._fetch(f"{folder}/{os.fsdecode(path)}", place)

    @cached_property
    def _folder(self) -> str:
        name = self._table.name
        if is_remote(name):
            beside = name.rpartition("/")[0]
        else:
            beside = os.path.dirname(os.path.abspath(self._storage.local(name)))
        relative = (path for path in self._table.paths() if _is_relative(path))
        for path in islice(relative, _PROBED):
            if os.path.exists(path):
                return os.getcwd()
            if not is_remote(beside) and os.path.exists(os.path.join(os.fsencode(beside), path)):
                return beside
        return beside

    def _fetch(self, url: str, place: Place) -> bytes:
        try:
            check_size(self._storage.identity(url).bytes, place)
            with self._storage.open(url) as file:
                return file.read()
        except StorageError as error:
            raise UnusableError(str(error), place) from None
        except OSError as error:
            raise UnusableError(f"cannot be read: {error.strerror}", place) from None


def _is_relative(path: bytes) -> bool:
    return bool(path) and b"\0" not in path and b"://" not in path and not os.path.isabs(path)
