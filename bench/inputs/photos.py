"""Real photographs as a training set stores them: scikit-learn's two, in several sizes."""

from __future__ import annotations

import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

_NAMES = ("china.jpg", "flower.jpg")


@cache
def photos(kind: str = "original") -> list[bytes]:
    """Two encoded JPEGs.

    Args:
        kind: "original" is 640 × 427 of quality 98; "short side 256", "512 × 600" and "1280 × 854"
            are encoded again at quality 90, the last as four of the original side by side, which
            keep their detail.
    """
    folder = Path(_package("sklearn")) / "datasets" / "images"  # it need not be imported
    originals = [(folder / name).read_bytes() for name in _NAMES]
    return originals if kind == "original" else [_KINDS[kind](data) for data in originals]


def _package(name: str) -> str:
    found = find_spec(name)
    assert found is not None
    (folder,) = found.submodule_search_locations or ()
    return folder


def opened(encoded: bytes) -> Image.Image:
    """As RGB, by Pillow."""
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def encode(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """In the format's default quality unless `options` tell another."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _resized(width: int, height: int, encoded: bytes) -> bytes:
    image = opened(encoded).resize((width, height), Image.Resampling.BICUBIC)
    return encode(image, quality=90)


def _tiled(encoded: bytes) -> bytes:
    image = opened(encoded)
    width, height = image.size
    tiles = Image.new("RGB", (2 * width, 2 * height))
    for left in (0, width):
        for top in (0, height):
            tiles.paste(image, (left, top))
    return encode(tiles, quality=90)


_KINDS = {
    "short side 256": lambda data: _resized(384, 256, data),
    "512 × 600": lambda data: _resized(600, 512, data),
    "1280 × 854": _tiled,
}
KINDS = ("original", *_KINDS)
