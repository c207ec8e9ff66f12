"""Parquet files that hold their images: read a row group at a time."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipfast.data.sources.parquet_columns import Columns, as_captions
from clipfast.data.sources.row_files import Row
from clipfast.data.sources.samples import UnusableError
from clipfast.data.sources.storage import Storage, StorageError, is_remote
from clipfast.errors import UserError

_KEPT = 256_000_000  # bytes of row groups that stay in memory
_LARGEST = 2_000_000_000  # bytes of one


class RowGroup(NamedTuple):
    """Attributes:
    images: (rows,) binary or structs of bytes and path; None where only captions were read.
    captions: (rows,) lists of binary.
    """

    images: pa.ChunkedArray | None
    captions: pa.Array

    @property
    def bytes(self) -> int:
        return self.captions.nbytes + (0 if self.images is None else self.images.nbytes)


class RowGroups:
    """The row groups read last, up to `limit` bytes of them but at least one; each is read once for
    all threads that wait for it."""

    def __init__(self, limit: int = _KEPT) -> None:
        self.limit, self._bytes = limit, 0
        self._groups = OrderedDict[Hashable, Future[RowGroup]]()
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], RowGroup]) -> RowGroup:
        """What `read` gives for `key`, or raises."""
        with self._lock:
            found = self._groups.get(key)
            group = self._groups.setdefault(key, Future())
            self._groups.move_to_end(key)
        if found is not None:
            return found.result()
        try:
            content = read()
        except BaseException as error:
            with self._lock:
                del self._groups[key]
            group.set_exception(error)
            raise
        group.set_result(content)
        with self._lock:
            self._bytes += content.bytes
            self._shrink(key)
        return content

    def _shrink(self, newest: Hashable) -> None:
        for key, group in list(self._groups.items()) if self._bytes > self.limit else ():
            if self._bytes <= self.limit:
                break
            # One that is being read is not counted yet.
            if key != newest and group.done():
                self._bytes -= group.result().bytes
                del self._groups[key]


class ImageTable:
    """A parquet file whose rows hold their images.

    Args:
        name: path or URL.
        columns: of its images and captions.
        metadata: of the file.
        storage: gets the file.
        groups: keeps what was read.

    Raises:
        UserError: a row group is too large to be read whole.
    """

    def __init__(
        self,
        name: str,
        columns: Columns,
        metadata: pq.FileMetaData,
        storage: Storage,
        groups: RowGroups,
    ) -> None:
        self.name, self._columns, self._storage, self._groups = name, columns, storage, groups
        shapes = [_shape(metadata.row_group(i), columns) for i in range(metadata.num_row_groups)]
        rows = np.array([shape.rows for shape in shapes], np.int64)
        self._first = np.cumsum([0, *rows])
        # A remote file is fetched whole, so all its rows belong together.
        self.counts: NDArray[np.int64] = rows.sum(keepdims=True) if is_remote(name) else rows
        self.counts = self.counts[self.counts > 0]
        self.fingerprint = f"{metadata.num_rows} {zlib.crc32(repr(shapes).encode())}"
        largest = max((shape.bytes for shape in shapes), default=0)
        if largest > _LARGEST:
            raise UserError(
                f"table {name}: expected row groups of at most {_LARGEST / 1e9:g} GB, as each is "
                f"read whole; got one of {largest / 1e9:.3g} GB: write it anew with fewer rows in "
                "each"
            )

    def row(self, number: int, *, image: bool) -> Row:
        group_number = int(np.searchsorted(self._first, number, side="right")) - 1
        group = self._groups.get(
            (self.name, group_number, image), lambda: self._read(group_number, image=image)
        )
        at = int(number - self._first[group_number])
        captions = tuple(group.captions[at].as_py())
        if group.images is None:
            return Row(b"", captions)
        value = group.images[at].as_py()
        if isinstance(value, dict):
            return Row((value.get("path") or "").encode(), captions, value["bytes"])
        return Row(b"", captions, value)

    def key(self, number: int) -> str:
        return str(number)

    def paths(self) -> Iterator[bytes]:
        """None is known without reading the images too."""
        return iter(())

    def _read(self, group: int, *, image: bool) -> RowGroup:
        image_key, caption_key, _ = self._columns
        names = [image_key, caption_key] if image else [caption_key]
        try:
            with self._storage.open(self.name) as file, pq.ParquetFile(file) as parquet:
                table = parquet.read_row_group(group, columns=names, use_threads=False)
            captions = as_captions(table.column(caption_key).combine_chunks())
        except (OSError, pa.ArrowException, StorageError) as error:
            raise UnusableError(f"row group {group} cannot be read: {error}") from None
        return RowGroup(table.column(image_key) if image else None, captions)


class _Shape(NamedTuple):
    rows: int
    bytes: int
    compressed: tuple[int, ...]


def _shape(group: pq.RowGroupMetaData, columns: Columns) -> _Shape:
    """How many rows it has, and how large they are."""
    used = [
        column
        for column in map(group.column, range(group.num_columns))
        if column.path_in_schema.split(".")[0] in (columns.image, columns.caption)
    ]
    return _Shape(
        group.num_rows,
        sum(column.total_uncompressed_size for column in used),
        tuple(column.total_compressed_size for column in used),
    )
