"""Images in files of their own, in a given order."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from clipfast.data.sources.image_files import read_file
from clipfast.data.sources.row_source import blocks
from clipfast.data.sources.samples import Fault, Place, Sample, UnusableError
from clipfast.eval.datasets.png import as_png

# Formats of test sets that the decoders do not take; they are shown as PNG.
_FOREIGN = (".ppm", ".pgm", ".bmp", ".tif", ".tiff")


class FileImages:
    """A `Source` of images, with captions or without.

    Args:
        root: where the paths start from.
        files: the images' paths.
        captions: those of each image; None is none.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        captions: Sequence[tuple[bytes, ...]] | None = None,
    ) -> None:
        self.name, self.root = str(root), root
        self._files, self._captions = list(files), captions
        self.counts = blocks(len(self._files))

    @cached_property
    def fingerprint(self) -> str:
        """By the files' names and sizes, and the captions."""
        digest = hashlib.sha256()
        for number, file in enumerate(self._files):
            captions = () if self._captions is None else self._captions[number]
            digest.update(repr((file, _size(self.root / file), captions)).encode())
        return digest.hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        place = self.place(number)
        captions = () if self._captions is None else self._captions[number]
        return Sample(self._image(number, place) if image else b"", captions, place)

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return Place(self.name, number, self._files[number])

    def faults(self) -> Iterator[Fault]:
        """Opening finds none."""
        return iter(())

    def _image(self, number: int, place: Place) -> bytes:
        content = read_file(self.root / self._files[number], place)
        if not self._files[number].lower().endswith(_FOREIGN):
            return content
        try:
            with Image.open(io.BytesIO(content)) as image:
                return as_png(image)
        except Exception as error:  # its parsers let through whatever they stumble over
            what = str(error).partition(" <")[0]  # of an object in memory
            raise UnusableError(f"damaged image: {what}", place) from None


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
