"""Which columns of a parquet file are images and captions, and their values in one form each."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.types as types

from clipfast.data.sources.row_files import one_caption_each
from clipfast.errors import UserError

IMAGE_KEYS = (
    *("filepath", "image", "image_path", "path", "file_name", "filename", "file", "img"),
    *("jpg", "jpeg", "png", "webp", "image_bytes", "image_url", "url"),
)
CAPTION_KEYS = ("title", "caption", "text", "captions", "texts", "txt", "sentence", "sentences")


class Columns(NamedTuple):
    """Attributes:
    image, caption: their names.
    embedded: the image is the column's value, rather than a path.
    """

    image: str
    caption: str
    embedded: bool


def find_columns(
    schema: pa.Schema, image_key: str | None, caption_key: str | None, table: str
) -> Columns:
    """Raises:
    UserError: a column is missing, or of a type that is neither.
    """
    image = _find(schema, image_key, IMAGE_KEYS, "an image", "--csv-img-key", table)
    caption = _find(schema, caption_key, CAPTION_KEYS, "a caption", "--csv-caption-key", table)
    image_type, caption_type = schema.field(image).type, schema.field(caption).type
    embedded = _is_bytes(image_type) or _is_struct(image_type)
    if not (embedded or _is_text(image_type)):
        raise UserError(
            f"table {table}: column {image!r}: expected paths (string), images (binary) or a "
            f"struct of bytes and path; got {image_type}"
        )
    inner = caption_type.value_type if _is_list(caption_type) else caption_type
    if not (_is_text(inner) or _is_bytes(inner)):
        raise UserError(
            f"table {table}: column {caption!r}: expected captions (string) or lists of them; got "
            f"{caption_type}"
        )
    return Columns(image, caption, embedded)


def as_paths(column: pa.Array) -> pa.Array:
    """(rows,) binary, empty where it is null."""
    return _as_binary(column).fill_null(b"")


def as_captions(column: pa.Array) -> pa.Array:
    """(rows,) lists of binary, without nulls."""
    if not _is_list(column.type):
        return one_caption_each(_as_binary(column))
    if column.null_count == 0 and _as_list(column).flatten().null_count == 0:
        return _as_list(column)
    lists = [[text for text in row or () if text is not None] for row in column.to_pylist()]
    return pa.array(lists, pa.list_(column.type.value_type)).cast(pa.list_(pa.binary()))


def _find(
    schema: pa.Schema,
    key: str | None,
    usual: tuple[str, ...],
    what: str,
    flag: str,
    table: str,
) -> str:
    if key is not None:
        if key in schema.names:
            return key
        expected = f"a column {key!r} ({flag})"
    else:
        by_lower = {name.lower(): name for name in reversed(schema.names)}
        for name in usual:
            if name in by_lower:
                return by_lower[name]
        expected = f"a column of {what}, such as {', '.join(usual[:4])} (or name it by {flag})"
    got = ", ".join(repr(name) for name in schema.names[:30])
    raise UserError(f"table {table}: expected {expected}; got {got}")


def _as_binary(column: pa.Array) -> pa.Array:
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.binary())


def _as_list(column: pa.Array) -> pa.Array:
    return column.cast(pa.list_(pa.binary()))


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_struct(kind: pa.DataType) -> bool:
    return types.is_struct(kind) and kind.get_field_index("bytes") >= 0
