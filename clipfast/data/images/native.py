"""The decoder that needs nothing beyond torchvision and Pillow: on the CPU, one image at a time.

B images, S the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.data.images.augmentation import Augmentation, Draw
from clipfast.data.images.colour import recolour
from clipfast.data.images.decode import crop_and_resize, resize_and_centre
from clipfast.data.images.decoders import Decoded
from clipfast.data.images.header import Header, read_header
from clipfast.data.images.preprocess import View
from clipfast.data.sources.samples import UnusableError


class Planned(NamedTuple):
    """An image before it is decoded.

    Attributes:
        row: in the batch.
        encoded: its bytes.
        header: what they say of it.
        draw: what training does to it; None shows it as evaluation does.
    """

    row: int
    encoded: bytes
    header: Header
    draw: Draw | None


class NativeDecoder:
    """Decodes, crops, resizes and recolours; called from several threads at once.

    It is meant for one core a thread: `torch.set_num_threads(1)`, or OpenMP's limit of the thread.

    Args:
        size: S.
        augmentation: of training.
        view: of evaluation.
        fast_jpeg: see `choose_decoder`.
    """

    name, device, part = "native", torch.device("cpu"), 16

    def __init__(
        self,
        size: int,
        augmentation: Augmentation,
        view: View = View(),  # noqa: B008  immutable
        *,
        fast_jpeg: bool = False,
    ) -> None:
        self.size, self.augmentation, self.view = size, augmentation, view
        self.fast_jpeg = fast_jpeg

    def __call__(self, encoded: Sequence[bytes], randoms: Sequence[Random] | None) -> Decoded:
        shape = (len(encoded), 3, self.size, self.size)
        # Channels last, as every decoder and the resize have them.
        pixels = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        images, faults = look_at(encoded, randoms, self.augmentation)
        for image in images:
            try:
                pixels[image.row] = decode_planned(image, self.size, self.view, fast=self.fast_jpeg)
            except UnusableError as error:
                faults[image.row] = str(error)
                continue
            if image.draw is not None and image.draw.changes_colour:
                recolour(pixels[image.row, None], [image.draw])
        return Decoded(pixels, dict(sorted(faults.items())))


def look_at(
    encoded: Sequence[bytes], randoms: Sequence[Random] | None, augmentation: Augmentation
) -> tuple[list[Planned], dict[int, str]]:
    """What their headers let hope for, and the faults that they show."""
    images = []
    faults = {}
    for row, data in enumerate(encoded):
        try:
            header = read_header(data)
        except UnusableError as error:
            faults[row] = str(error)
            continue
        draw = None
        if randoms is not None:
            draw = augmentation.draw(header.height, header.width, randoms[row])
        images.append(Planned(row, data, header, draw))
    return images, faults


def decode_planned(image: Planned, size: int, view: View, *, fast: bool = False) -> Tensor:
    """(3, S, S) uint8, in the colours that it has.

    Raises:
        UnusableError: damaged.
    """
    if image.draw is None:
        return resize_and_centre(image.encoded, image.header, size, view, fast=fast)
    return crop_and_resize(
        image.encoded,
        image.header,
        image.draw.box,
        size,
        interpolation=image.draw.interpolation,
        fast=fast,
    )
