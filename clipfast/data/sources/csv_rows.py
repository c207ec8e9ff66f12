"""Rows of comma- or tab-separated text, found by the rules of pandas' reader."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import pyarrow as pa
from fsspec.compression import compr
from fsspec.utils import infer_compression

from clipfast.data.sources.row_files import ROWS, Progressing, row_batch
from clipfast.errors import UserError

SEPARATORS = ("\t", ",", ";", "|")
_LARGEST_CELL = 1 << 28  # characters


class CsvRows:
    """A header and rows of bytes, for a ``with`` block: quoted cells may hold line ends, blank
    lines are no rows, and what is not UTF-8 stays as it is.

    Args:
        path: compressed where its ending says so (.gz, .bz2, .xz, .zip, .zst).
        separator: one character.
        name: of the table, for messages.

    Attributes:
        header: names of the columns.

    Raises:
        UserError: it cannot be read, or has no header.
    """

    def __init__(self, path: Path, separator: str, name: str) -> None:
        self.path, self.separator, self.name = path, separator, name

    def __enter__(self) -> CsvRows:
        with ExitStack() as opened:
            try:
                file = opened.enter_context(open(self.path, "rb"))
                self._file: IO[bytes] = file
                self._size = max(1, self.path.stat().st_size)
                content = opened.enter_context(
                    compr[infer_compression(self.path.name)](file, mode="rb")
                )
            except (OSError, ValueError) as error:
                raise UserError(f"table {self.name}: cannot be read: {error}") from None
            text = io.TextIOWrapper(
                content, "utf-8-sig", errors="surrogateescape", newline="", write_through=True
            )
            self._rows = self._read(opened.enter_context(text))
            self.header = next(self._rows, [])
            if not self.header:
                raise UserError(f"table {self.name}: expected a header; got an empty file")
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    @property
    def done(self) -> float:
        """How much has been read, from 0 to 1."""
        return min(1.0, self._file.tell() / self._size)

    def column(self, key: str, flag: str) -> int:
        """Raises:
        UserError: the header has no such column.
        """
        if key in self.header:
            return self.header.index(key)
        message = (
            f"table {self.name}: expected a column {key!r} ({flag}); got "
            f"{', '.join(repr(name) for name in self.header[:30])}"
        )
        if len(self.header) == 1:
            for other in SEPARATORS:
                if other in self.header[0]:
                    message += f"; its columns seem to be separated by {other!r} (--csv-separator)"
                    break
        raise UserError(message)

    def __iter__(self) -> Iterator[list[str]]:
        """Rows as they are, with bytes that are no UTF-8 as lone surrogates."""
        return self._rows

    def _read(self, text: io.TextIOWrapper) -> Iterator[list[str]]:
        ended = False

        def lines() -> Iterator[str]:
            nonlocal ended
            yield from text
            ended = True

        row_number = -1  # of the header
        previous = csv.field_size_limit(_LARGEST_CELL)
        try:
            for row in csv.reader(lines(), delimiter=self.separator):
                # A reader that asked for another line after the last is inside a quoted cell.
                if ended:
                    raise UserError(
                        f"table {self.name}: row {row_number}: a quotation mark opens a cell that "
                        "is never closed"
                    )
                if row and (len(row) > 1 or row[0].strip(" \t")):
                    yield row
                    row_number += 1
        except csv.Error as error:
            raise UserError(f"table {self.name}: row {row_number}: {error}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"table {self.name}: cannot be read after row {row_number}: {error}"
            ) from None
        finally:
            csv.field_size_limit(previous)


def as_bytes(cell: str) -> bytes:
    """What it was read from; not UTF-8 where it cannot be written in that."""
    try:
        return cell.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, from an escape in JSON
        return cell.encode("utf-8", "surrogatepass")


def convert(rows: CsvRows, image: int, caption: int) -> Iterator[Progressing]:
    """Args:
    rows: opened.
    image, caption: numbers of their columns.
    """
    width, index = len(rows.header), None
    while block := list(islice(rows, ROWS)):
        if index is None:
            # As in pandas: what the first row has more than the header names comes first.
            index = max(0, len(block[0]) - width)
            width, image, caption = width + index, image + index, caption + index
        fitted = [row if len(row) == width else _fit(row, width, image) for row in block]
        ends = pa.array(np.arange(len(fitted) + 1, dtype=np.int32))
        captions = pa.ListArray.from_arrays(ends, _binary([row[caption] for row in fitted]))
        yield Progressing(row_batch(_binary([row[image] for row in fitted]), captions), rows.done)


def _fit(row: list[str], width: int, image: int) -> list[str | None]:
    """As in pandas, cells at the end may be left out; more of them than names cannot be used."""
    if len(row) < width:
        return [*row, *[""] * (width - len(row))]
    unusable: list[str | None] = [f"expected {width} fields; got {len(row)}"] * width
    unusable[image] = None
    return unusable


def _binary(cells: list[str | None]) -> pa.Array:
    try:
        return pa.array(cells, pa.string()).cast(pa.binary())
    except UnicodeEncodeError:
        return pa.array([None if c is None else as_bytes(c) for c in cells], pa.binary())
