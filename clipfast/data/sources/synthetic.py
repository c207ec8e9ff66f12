"""Samples without data: open_clip's ``--dataset-type synthetic``."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

from clipfast.data.sources.row_source import blocks
from clipfast.data.sources.samples import Fault, Place, Sample
from clipfast.errors import UserError

_COLOUR = (100, 100, 100)
_CAPTION = b"Dummy caption"


class SyntheticSource:
    """The same grey image and the caption "Dummy caption", as often as one likes.

    Args:
        samples: how many.
        image_size: width and height of the image, a JPEG.

    Raises:
        UserError: there would be no sample.
    """

    def __init__(self, samples: int, image_size: int) -> None:
        if samples < 1:
            raise UserError(f"synthetic data: expected 1 sample or more; got {samples}")
        self.name = "synthetic"
        self.counts = blocks(samples)
        self._image = _grey_jpeg(image_size)
        self._size = image_size

    @property
    def fingerprint(self) -> str:
        """By the image's size."""
        return f"synthetic {self._size}"

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        return Sample(self._image if image else b"", (_CAPTION,), self.place(number))

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return Place(self.name, number, str(number))

    def faults(self) -> Iterator[Fault]:
        """None."""
        return iter(())


def _grey_jpeg(side: int) -> bytes:
    file = io.BytesIO()
    # This quality keeps the colour exactly.
    Image.new("RGB", (side, side), _COLOUR).save(file, "JPEG", quality=95)
    return file.getvalue()
