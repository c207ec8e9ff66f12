"""Images in one array, as many small sets are kept."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clipfast.data.sources.row_source import blocks
from clipfast.data.sources.samples import Fault, Place, Sample
from clipfast.eval.datasets.png import as_png


class Images(Protocol):
    """(N, H, W) of grey or (N, H, W, 3) of RGB, uint8; an array, or what reads like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


class ArrayImages:
    """A `Source` of an array's images as PNG.

    Args:
        name: of the array: its file, or the set's folder.
        images: the array.
        fingerprint: None finds it by all pixels.
    """

    def __init__(self, name: str, images: Images, fingerprint: str | None = None) -> None:
        self.name, self._images = name, images
        self._fingerprint = fingerprint
        self.counts = blocks(len(images))

    @cached_property
    def fingerprint(self) -> str:
        return self._fingerprint or self._of_pixels()

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        content = as_png(Image.fromarray(self._pixels(number))) if image else b""
        return Sample(content, (), self.place(number))

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return Place(self.name, number, f"image {number}")

    def faults(self) -> Iterator[Fault]:
        """Opening finds none."""
        return iter(())

    def _pixels(self, number: int) -> np.ndarray:
        return np.ascontiguousarray(self._images[number])

    def _of_pixels(self) -> str:
        checksum = 0
        for number in range(len(self._images)):
            checksum = zlib.crc32(self._pixels(number).data, checksum)
        about = repr((len(self._images), self._images[0].shape, checksum))
        return hashlib.sha256(about.encode()).hexdigest()[:16]
