"""Tables of pairs: comma- or tab-separated text as open_clip reads it, and parquet files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand

from clipfast.data.sources.csv_rows import CsvRows, convert
from clipfast.data.sources.parquet_columns import Columns, as_captions, as_paths, find_columns
from clipfast.data.sources.row_files import ROWS, Progressing, RowFile, keep_rows, row_batch
from clipfast.data.sources.row_groups import ImageTable, RowGroups
from clipfast.data.sources.row_source import PathTable, Table, TableSource
from clipfast.data.sources.storage import Storage, is_remote, redacted
from clipfast.errors import UserError

_SUFFIX = ".clipfast-rows"
# How Hugging Face names the files of a split.
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}")


class CsvSource(TableSource):
    """open_clip's tables: a header, and rows of an image's path or URL and a caption.

    Rows are found by the rules of ``pandas.read_csv``, but every cell is text: "NA", "null" and
    "007" stay as they are written. They are converted once into ``PATH.clipfast-rows``.

    Args:
        path: path or URL of the table.
        storage: gets the table and images by URL.
        separator: between the cells of a row, one character.
        image_key: name of the column of images.
        caption_key: name of the column of captions.

    Raises:
        UserError: the table cannot be read, or a column is missing.
    """

    def __init__(
        self,
        path: str,
        storage: Storage,
        *,
        separator: str = "\t",
        image_key: str = "filepath",
        caption_key: str = "title",
    ) -> None:
        separator = "\t" if separator == "\\t" else separator
        if len(separator) != 1 or separator in '"\r\n':
            raise UserError(
                "--csv-separator: expected one character that is no quotation mark or line end; "
                f"got {separator!r}"
            )

        def rows() -> Iterator[Progressing]:
            with CsvRows(storage.local(path), separator, redacted(path)) as table:
                image = table.column(image_key, "--csv-img-key")
                yield from convert(table, image, table.column(caption_key, "--csv-caption-key"))

        about = {"separator": separator, "image": image_key, "caption": caption_key}
        super().__init__(
            redacted(path), [PathTable(path, _keep(path, storage, about, rows))], storage
        )


class ParquetSource(TableSource):
    """Parquet files of images or their paths or URLs, and of one or several captions in each row.

    Paths are converted once into ``FILE.clipfast-rows``; of images the row group is read.

    Args:
        pattern: a path or URL, a brace list or ``*`` pattern of them, or a folder.
        storage: gets files by URL.
        image_key: name of the column of images; None finds it by the usual names.
        caption_key: name of the column of captions; None finds it by the usual names.

    Raises:
        UserError: a file is missing or damaged, or a column of it.
    """

    def __init__(
        self,
        pattern: str,
        storage: Storage,
        *,
        image_key: str | None = None,
        caption_key: str | None = None,
    ) -> None:
        groups = RowGroups()
        tables = [
            _open_parquet(name, storage, groups, image_key, caption_key)
            for name in expand_tables(pattern)
        ]
        super().__init__(redacted(pattern), tables, storage)


def expand_tables(pattern: str) -> list[str]:
    """The files of a brace list, ``*`` pattern or folder, those of a folder in order.

    Raises:
        UserError: there is none, or a folder has several splits.
    """
    if os.path.exists(pattern):
        return _in_folder(pattern) if os.path.isdir(pattern) else [pattern]
    try:
        parts = list(braceexpand(pattern))
    except ValueError:
        raise UserError(f"table: expected balanced braces; got {pattern!r}") from None
    names: list[str] = []
    for part in parts:
        if is_remote(part) or os.path.isfile(part):
            names.append(part)
        elif os.path.isdir(part):
            names += _in_folder(part)
        elif "*" in part and (found := sorted(glob.glob(part))):
            names += found
        else:
            raise UserError(f"table {part}: no such file")
    return names


def _in_folder(folder: str) -> list[str]:
    names = sorted(str(path) for path in Path(folder).glob("[!.]*.parquet"))
    if not names:
        raise UserError(f"folder {folder}: expected .parquet files in it; got none")
    found = [_SPLIT.match(Path(name).stem) for name in names]
    splits = sorted({split[1] for split in found if split})
    if len(splits) > 1:
        raise UserError(
            f"folder {folder}: expected the files of one split; got {', '.join(splits)}: "
            f"name one such as '{os.path.join(folder, splits[-1])}-*.parquet'"
        )
    return names


def _open_parquet(
    name: str, storage: Storage, groups: RowGroups, image_key: str | None, caption_key: str | None
) -> Table:
    shown = redacted(name)
    try:
        metadata = _footer(name, storage)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"table {shown}: expected a whole parquet file; got one that is truncated or no "
            f"parquet file ({_first_line(error)})"
        ) from None
    columns = find_columns(metadata.schema.to_arrow_schema(), image_key, caption_key, shown)
    if columns.embedded:
        return ImageTable(name, columns, metadata, storage, groups)
    about = {"image": columns.image, "caption": columns.caption}
    rows = _keep(name, storage, about, lambda: _convert_paths(name, storage, columns))
    return PathTable(name, rows)


def _footer(name: str, storage: Storage) -> pq.FileMetaData:
    """A file's metadata. A remote file's is kept, so that a later start need not fetch the file."""
    if not is_remote(name):
        return pq.read_metadata(storage.local(name))
    kept = _in_cache(f"{name}\n{storage.identity(name)}", storage, ".clipfast-footer")
    with contextlib.suppress(OSError, pa.ArrowException):
        return pq.read_metadata(kept)
    with storage.open(name) as file:
        metadata = pq.read_metadata(file)
    partial = kept.with_name(f"{kept.name}.{uuid.uuid4().hex[:12]}.partial")
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_metadata_file(str(partial))
        os.replace(partial, kept)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    return metadata


def _convert_paths(name: str, storage: Storage, columns: Columns) -> Iterator[Progressing]:
    done = 0
    try:
        with storage.open(name) as file, pq.ParquetFile(file) as parquet:
            total = max(1, parquet.metadata.num_rows)
            names = [columns.image, columns.caption]
            for batch in parquet.iter_batches(ROWS, columns=names, use_threads=False):
                done += len(batch)
                paths = as_paths(batch.column(columns.image))
                captions = as_captions(batch.column(columns.caption))
                yield Progressing(row_batch(paths, captions), done / total)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"table {redacted(name)}: cannot be read after row {done}: {_first_line(error)}"
        ) from None


def _keep(
    path: str,
    storage: Storage,
    about: dict[str, Any],
    convert: Callable[[], Iterator[Progressing]],
) -> RowFile:
    """Beside the table, or in the cache where that cannot be."""
    identity = storage.identity(path)
    whole = path if is_remote(path) else os.path.abspath(path)
    places = [_in_cache(whole, storage, _SUFFIX)]
    if not is_remote(path):
        local = storage.local(path)
        places.insert(0, local.with_name(local.name + _SUFFIX))
    about = about | {"bytes": identity.bytes, "stamp": identity.stamp}
    return keep_rows(places, about, convert, table=redacted(path), table_bytes=identity.bytes)


def _in_cache(name: str, storage: Storage, suffix: str) -> Path:
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return storage.folder / "rows" / f"{digest[:24]}{suffix}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
