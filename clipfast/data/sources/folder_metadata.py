"""Captions from the ``metadata.csv`` or ``metadata.jsonl`` of a Hugging Face image folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipfast.data.sources.csv_rows import CsvRows, as_bytes
from clipfast.errors import UserError

NAMES = (b"metadata.csv", b"metadata.jsonl")
CAPTION_KEYS = ("text", "caption", "captions", "title")
_FILE = "file_name"


def read_metadata(
    path: bytes, folder: bytes, fault: Callable[[int, str], None]
) -> dict[bytes, list[str]]:
    """Captions by the image's path, which starts where `folder`'s does.

    Args:
        path: of the file.
        folder: that holds it.
        fault: is told the number of a row that cannot be used, and why.

    Raises:
        UserError: it cannot be read.
    """
    captions = {}
    for number, name, texts in _rows(path, fault):
        inside = os.path.normpath(as_bytes(name))
        if os.path.isabs(inside) or inside.split(b"/")[0] == b"..":
            fault(number, f"expected a file inside the folder; got {name!r}")
        else:
            captions[os.path.join(folder, inside)] = texts
    return captions


def _rows(path: bytes, fault: Callable[[int, str], None]) -> Iterator[tuple[int, str, list[str]]]:
    name = os.fsdecode(path)
    rows = _csv_rows(name) if name.endswith(".csv") else _json_rows(name)
    for number, row in rows:
        if isinstance(row, str):
            fault(number, row)
            continue
        key = next((key for key in CAPTION_KEYS if key in row), None)
        if not isinstance(row.get(_FILE), str) or key is None:
            expected = f"expected {_FILE} and one of {', '.join(CAPTION_KEYS)}"
            fault(number, f"{expected}; got {', '.join(map(repr, row))}")
            continue
        texts = row[key] if isinstance(row[key], list) else [row[key]]
        yield number, row[_FILE], [text for text in texts if isinstance(text, str)]


def _csv_rows(name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with CsvRows(Path(name), ",", name) as rows:
        for number, row in enumerate(rows):
            if len(row) > len(rows.header):
                yield number, f"expected {len(rows.header)} fields; got {len(row)}"
            else:
                yield number, dict(zip(rows.header, row, strict=False))


def _json_rows(name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        with open(name, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(line for line in lines if line.strip()):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield number, row if isinstance(row, dict) else "expected a JSON object"
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
