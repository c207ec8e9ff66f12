"""Hugging Face datasets as ``datasets.save_to_disk`` writes them, read as the Arrow files they are.

A dataset's folder has ``state.json``, which lists the Arrow files, and ``dataset_info.json``, which
tells the columns that are images; a dict's has ``dataset_dict.json`` and a folder for each split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from clipfast.data.sources.image_files import check_size, read_file
from clipfast.data.sources.row_source import blocks
from clipfast.data.sources.samples import Fault, Place, Sample, UnusableError
from clipfast.data.sources.storage import is_remote
from clipfast.errors import UserError

CAPTION_KEYS = ("title", "caption", "text", "captions", "txt")


class HFDatasetSource:
    """The rows of a dataset on the disk; images stay encoded, and the files memory-mapped.

    Args:
        path: of a dataset, or of a dict of them: then its split "train" or the only one.
        image_key: the column of images; by default the only one that is.
        caption_key: the column of captions, a text or a list of texts each; by default the first of
            `CAPTION_KEYS` that there is, or the only column of texts.

    Raises:
        UserError: the folder is no such dataset or damaged, or has not these columns.
    """

    def __init__(
        self, path: str, *, image_key: str | None = None, caption_key: str | None = None
    ) -> None:
        self.name = path
        dataset = _open(_split(Path(path)))
        captions = _caption_column(dataset, caption_key)
        image = _image_column(dataset, image_key)
        self._images, self._captions = dataset.table[image], dataset.table[captions]
        self._about = f"{dataset.fingerprint} {len(dataset.table)} {image!r} {captions!r}"
        self.counts = blocks(len(dataset.table))

    @property
    def fingerprint(self) -> str:
        """By the dataset's own, and the columns."""
        return hashlib.sha256(self._about.encode()).hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        place = self.place(number)
        captions = _texts(self._captions[number])
        if not captions:
            raise UnusableError("no caption", place)
        return Sample(self._image(number, place) if image else b"", captions, place)

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return Place(self.name, number, str(number))

    def faults(self) -> Iterator[Fault]:
        """None: rows that cannot be used are found when they are read."""
        return iter(())

    def _image(self, number: int, place: Place) -> bytes:
        scalar = self._images[number]
        path = None
        if isinstance(scalar, pa.StructScalar) and scalar.is_valid:
            path = scalar["path"].as_py() if "path" in scalar else None
            scalar = scalar["bytes"]
        content = scalar.as_buffer() if scalar.is_valid else None
        if content:
            check_size(content.size, place)
            return content.to_pybytes()
        if not path:
            raise UnusableError("no image", place)
        if is_remote(path):
            raise UnusableError("its image is not in the dataset, but behind a URL", place)
        return read_file(Path(path), place)


class _Dataset(NamedTuple):
    """Attributes:
    path: its folder.
    table: all rows.
    images: the columns that are images.
    fingerprint: that `datasets` gave it.
    """

    path: Path
    table: pa.Table
    images: list[str]
    fingerprint: str


def _split(folder: Path) -> Path:
    """The folder of the dataset that is trained on."""
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return folder
    splits = _read_json(listing).get("splits", [])
    if "train" in splits:
        return folder / "train"
    if len(splits) != 1:
        raise UserError(
            f"{folder}: expected a split train, or one split only; got {_listed(splits)}: name the "
            "folder of one"
        )
    return folder / splits[0]


def _open(folder: Path) -> _Dataset:
    state, about = (_read_json(folder / name) for name in ("state.json", "dataset_info.json"))
    try:
        files = [folder / file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder / 'state.json'}: expected a list of files; got none") from None
    tables = [_read_arrow(file) for file in files]
    if not any(map(len, tables)):
        raise UserError(f"{folder}: expected rows; got a dataset without one")
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(f"{folder}: expected files with the same columns; got: {error}") from None
    features = about.get("features") or {}
    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    return _Dataset(folder, table, images, str(state.get("_fingerprint")))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path.parent}: expected a dataset as datasets.save_to_disk writes it; got a folder "
            f"without {path.name} ({error.strerror})"
        ) from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; got a damaged file")
    return content


def _read_arrow(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except OSError as error:
        raise UserError(f"{path}: expected an Arrow file; got: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise UserError(f"{path}: expected an Arrow file; got a damaged one: {error}") from None


def _image_column(dataset: _Dataset, key: str | None) -> str:
    if key is None:
        if len(dataset.images) != 1:
            raise UserError(
                f"{dataset.path}: expected one column of images; got {_listed(dataset.images)} "
                f"among {_listed(dataset.table.column_names)}"
            )
        return dataset.images[0]
    kind = _type_of(dataset, key)
    if not (_is_bytes(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise UserError(f"{dataset.path}: expected images in the column {key}; got {kind}")
    return key


def _caption_column(dataset: _Dataset, key: str | None) -> str:
    if key is not None:
        if not _is_caption(kind := _type_of(dataset, key)):
            raise UserError(f"{dataset.path}: expected texts in the column {key}; got {kind}")
        return key
    texts = [field.name for field in dataset.table.schema if _is_caption(field.type)]
    named = [name for name in CAPTION_KEYS if name in texts]
    if not named and len(texts) != 1:
        raise UserError(
            f"{dataset.path}: expected a column of texts named {', '.join(CAPTION_KEYS[:-1])} or "
            f"{CAPTION_KEYS[-1]}, or only one; got {_listed(texts)} "
            f"among {_listed(dataset.table.column_names)}"
        )
    return (named or texts)[0]


def _type_of(dataset: _Dataset, key: str) -> pa.DataType:
    if key not in dataset.table.column_names:
        raise UserError(
            f"{dataset.path}: expected a column {key}; got {_listed(dataset.table.column_names)}"
        )
    return dataset.table.schema.field(key).type


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_caption(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return _is_text(kind) or (any(test(kind) for test in lists) and _is_text(kind.value_type))


def _texts(scalar: pa.Scalar) -> tuple[bytes, ...]:
    """As they are stored, whether or not that is UTF-8."""
    texts = (scalar.values or ()) if hasattr(scalar, "values") else (scalar,)
    return tuple(text.as_buffer().to_pybytes() for text in texts if text.is_valid)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
