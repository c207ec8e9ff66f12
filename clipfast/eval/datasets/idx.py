"""MNIST and its like, in the IDX files that they are published in."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import MNIST, FashionMNIST

from clipfast.errors import UserError
from clipfast.eval.datasets.array_images import ArrayImages
from clipfast.eval.datasets.fetching import fetch, not_found
from clipfast.eval.datasets.sets import Classification, LabelledImages, labelled
from clipfast.eval.prompts.reading import prompts_of

# The first bytes: two zeros, the kind of the values (unsigned bytes), the number of dimensions.
_KIND = b"\0\0\x08"
_ENDINGS = ("-idx{}-ubyte", ".idx{}-ubyte")
_PACKED = ("", ".gz")

_TORCHVISION = {"mnist": MNIST, "fashion_mnist": FashionMNIST}
_PAGES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist",
}


def open_idx(
    name: str, root: Path, *, download: bool = False, train: bool = True
) -> Classification:
    """MNIST or Fashion-MNIST, from torchvision's folder or one that holds the IDX files.

    Args:
        name: "mnist" or "fashion_mnist".
        root: torchvision's, the files' own, or one above that is called as the set.
        download: fetches what is missing into torchvision's folder.
        train: False leaves training images out.

    Raises:
        UserError: the test images are missing, or files damaged or of other images.
    """
    folder = next((f for f in _folders(name, root) if _find(f, "t10k-images", 3)), None)
    if folder is None and download:
        fetch(name, lambda: _TORCHVISION[name](str(root), download=True))
        folder = root / _TORCHVISION[name].__name__ / "raw"
    if folder is None or _find(folder, "t10k-images", 3) is None:
        raise not_found(root, f"{name}: t10k-images-idx3-ubyte, or .gz", _PAGES[name])
    trains = train and _find(folder, "train-images", 3) is not None
    training = _open(name, folder, "train") if trains else None
    return Classification(name, _open(name, folder, "t10k"), training)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file's bytes, in their shape.

    Raises:
        UserError: no such file, or of other values or dimensions than expected, or shorter or
            longer than its header says.
    """
    try:
        with _opened(path) as file:
            return _read(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: expected a whole file; got: {error}") from None


def _read(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int) -> NDArray[np.uint8]:
    magic = file.read(4)
    if magic != _KIND + bytes([dimensions]):
        expected = (_KIND + bytes([dimensions])).hex(" ")
        raise UserError(
            f"{path}: expected an IDX file of bytes in {dimensions} dimensions, which begins with "
            f"{expected}; got {magic.hex(' ') or 'an empty file'}"
        )
    sizes = file.read(4 * dimensions)
    shape = tuple(int(n) for n in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
    if len(shape) < dimensions:
        raise UserError(f"{path}: truncated in its header, at byte {4 + len(sizes)}")
    size = math.prod(shape)
    # One byte more tells whether the file goes on.
    content = b"".join(_pieces(file, size + 1))
    if len(content) != size:
        got = "more" if len(content) > size else f"{len(content):,}"
        raise UserError(
            f"{path}: expected {size:,} bytes after its header, for {' × '.join(map(str, shape))}; "
            f"got {got}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _pieces(file: BinaryIO | gzip.GzipFile, size: int) -> Iterator[bytes]:
    """A header may promise more than memory holds, so what is there is read bit by bit."""
    while size and (piece := file.read(min(size, 1 << 24))):
        size -= len(piece)
        yield piece


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _open(name: str, folder: Path, part: str) -> LabelledImages:
    paths = _find(folder, f"{part}-images", 3), _find(folder, f"{part}-labels", 1)
    if paths[0] is None or paths[1] is None:
        raise UserError(f"{folder}: expected {part}-labels-idx1-ubyte, or .gz; got none")
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    classes, templates = prompts_of(name)
    source = ArrayImages(str(paths[0]), images)
    return labelled(source, labels, classes, templates, "clipfast")


def _find(folder: Path, stem: str, dimensions: int) -> Path | None:
    names = [stem + ending.format(dimensions) + gz for gz in _PACKED for ending in _ENDINGS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _folders(name: str, root: Path) -> Iterator[Path]:
    yield from (root, root / "raw")
    for inside in (_TORCHVISION[name].__name__, name, name.replace("_", "-")):
        yield from (root / inside / "raw", root / inside)
