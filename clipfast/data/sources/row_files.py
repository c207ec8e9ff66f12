"""Tables converted once into a file of rows that is found by number and shared by all processes.

It is an Arrow IPC file, mapped into memory: batches of `ROWS` rows of an image's path and its
captions, and an empty batch last, with the number of rows and their checksum.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import Progress

from clipfast.errors import UserError

ROWS = 1 << 14
_VERSION = 1
_ABOUT = b"clipfast"
_OPEN_FILES, _OPEN_BATCHES = 64, 512
_LARGE = 64_000_000  # bytes of a table whose conversion is worth a progress bar
_BINARY, _CAPTIONS = pa.binary(), pa.list_(pa.binary())


class Row(NamedTuple):
    """Attributes:
    path: of the image, as it is written; empty where there is none. None in a row that cannot be
        used: its one caption tells why.
    captions: none where there is none.
    image: encoded, where the table itself holds it.
    """

    path: bytes | None
    captions: tuple[bytes, ...]
    image: bytes | None = None


class Progressing(NamedTuple):
    """Rows of a table, and how much of it has been read with them, from 0 to 1."""

    rows: pa.RecordBatch
    done: float


def row_batch(paths: pa.Array, captions: pa.Array) -> pa.RecordBatch:
    """Args:
    paths: (rows,) binary.
    captions: (rows,) lists of binary.
    """
    return pa.record_batch([paths, captions], schema=_schema(b""))


def one_caption_each(captions: pa.Array) -> pa.Array:
    """(rows,) lists of one binary each, or of none where it is null."""
    ends = np.cumsum(captions.is_valid().to_numpy(zero_copy_only=False), dtype=np.int32)
    starts = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
    return pa.ListArray.from_arrays(starts, captions.drop_null())


class RowFile:
    """Rows of a kept file, by number; safe from several threads.

    Args:
        path: the file.
        about: what its rows are of.
        holder: removes the file when it goes, where it is not kept.

    Attributes:
        checksum: of all rows.

    Raises:
        OSError, ArrowException, ValueError, KeyError: it is missing, damaged, or about other rows.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any],
        holder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.path, self._about, self._holder = path, _encoded(about), holder
        summary = _Reader(path, self._about).summary
        self._rows, self.checksum = int(summary[b"rows"]), int(summary[b"checksum"])

    def __len__(self) -> int:
        return self._rows

    def row(self, number: int) -> Row:
        """Raises:
        UserError: the file has been damaged or replaced.
        """
        try:
            batch = _reader(self.path, self._about, self.checksum).batch(number // ROWS)
            at = number % ROWS
            return Row(batch.column(0)[at].as_py(), tuple(batch.column(1)[at].as_py()))
        except (OSError, pa.ArrowException, LookupError, ValueError) as error:
            raise UserError(
                f"{self.path}: expected the rows kept there earlier; got: {error}; remove the "
                "file, and it is made anew"
            ) from None


def keep_rows(
    places: Sequence[Path],
    about: Mapping[str, Any],
    convert: Callable[[], Iterator[Progressing]],
    *,
    table: str,
    table_bytes: int,
) -> RowFile:
    """The rows kept in the first of some places that has them, or that can be written.

    Where none can, the file lasts as long as this object.

    Args:
        places: of the kept file.
        about: what the rows are of; a file about others is made anew.
        convert: reads the table, and raises none but UserErrors.
        table: its name.

    Raises:
        UserError: the table cannot be converted, or there is no room for the rows anywhere.
    """
    for path in places:
        if (kept := _open(path, about)) is not None:
            return kept

    def write(path: Path) -> None:
        with _bar(f"converting {table}", shown=table_bytes >= _LARGE) as show:
            _write(path, about, convert(), show)

    for path in places:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                # Another process may have made it meanwhile.
                if (kept := _open(path, about)) is not None:
                    return kept
                write(path)
                return RowFile(path, about)
    try:
        holder = tempfile.TemporaryDirectory(prefix="clipfast-rows-")
        path = Path(holder.name) / "rows"
        write(path)
    except OSError as error:
        tried = ", ".join(str(place.parent) for place in places)
        raise UserError(
            f"table {table}: expected room for its rows in one of {tried} or the folder for "
            f"temporary files; got: {error.strerror or error}"
        ) from None
    return RowFile(path, about, holder)


def _open(path: Path, about: Mapping[str, Any]) -> RowFile | None:
    try:
        return RowFile(path, about)
    except (OSError, pa.ArrowException, LookupError, ValueError):
        return None


def _write(
    path: Path,
    about: Mapping[str, Any],
    batches: Iterator[Progressing],
    show: Callable[[float], None],
) -> None:
    """Under its name at once and whole."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    rows, checksum = 0, 0
    schema = _schema(_encoded(about))
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in _even(batches, show):
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
                rows, checksum = rows + len(batch), _checksum(batch, checksum)
            summary = {"rows": str(rows), "checksum": str(checksum)}
            writer.write_batch(
                pa.RecordBatch.from_pylist([], schema=schema), custom_metadata=summary
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _even(
    batches: Iterator[Progressing], show: Callable[[float], None]
) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `ROWS`, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch, done in batches:
        show(done)
        waiting.append(batch)
        count += len(batch)
        while count >= ROWS:
            joined = _joined(waiting)
            yield joined.slice(0, ROWS)
            waiting, count = [joined.slice(ROWS)], count - ROWS
    if count:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _checksum(batch: pa.RecordBatch, checksum: int) -> int:
    """Of what the rows hold, however they are laid out."""
    paths, captions = batch.columns
    lengths = pc.list_value_length(captions)
    for numbers in (lengths, pc.binary_length(paths), pc.binary_length(captions.flatten())):
        checksum = zlib.crc32(numbers.fill_null(-1).cast(pa.int32()).to_numpy(), checksum)
    for array in (paths, captions.flatten()):
        _, offsets, content = array.buffers()
        if content is not None and len(array):
            ends = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]]
            checksum = zlib.crc32(memoryview(content)[ends[0] : ends[1]], checksum)
    return checksum


class _Reader:
    def __init__(self, path: Path, about: bytes) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        if (self._file.schema.metadata or {}).get(_ABOUT) != about:
            raise ValueError("another table's rows")
        self._lock = threading.Lock()
        last = self._file.num_record_batches - 1
        self.summary = self._file.get_batch_with_custom_metadata(last).custom_metadata
        self.batch = lru_cache(_OPEN_BATCHES)(self._batch)

    def _batch(self, number: int) -> pa.RecordBatch:
        with self._lock:
            batch = self._file.get_batch(number)
        batch.validate(full=True)  # otherwise a damaged offset would lead out of the file
        return batch


@lru_cache(_OPEN_FILES)
def _reader(path: Path, about: bytes, checksum: int) -> _Reader:
    reader = _Reader(path, about)
    if int(reader.summary[b"checksum"]) != checksum:
        raise ValueError("rows of another time")
    return reader


def _encoded(about: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": _VERSION, **about}, sort_keys=True).encode()


def _schema(about: bytes) -> pa.Schema:
    fields = [("image", _BINARY), ("captions", _CAPTIONS)]
    return pa.schema(fields, metadata={_ABOUT: about} if about else None)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps processes from converting the same table, as far as the file system has locks."""
    lock = path.with_name(f"{path.name}.lock")
    with open(lock, "ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _bar(title: str, *, shown: bool) -> Iterator[Callable[[float], None]]:
    console = Console(stderr=True)
    disable = not (shown and sys.stderr.isatty())
    with Progress(console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda done: bar.update(task, completed=done)
