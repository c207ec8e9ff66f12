"""The decoder that needs nothing beyond torchvision and Pillow: on the CPU, one image at a time.

B images, S the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.colour import recolour
from clipfast.data.images.decode import crop_and_resize, resize_and_centre
from clipfast.data.images.decoders import Decoded
from clipfast.data.images.header import read_header
from clipfast.data.sources.samples import UnusableError


class NativeDecoder:
    """Decodes, crops, resizes and recolours; called from several threads at once.

    Its speed is that of one thread: `torch.set_num_threads(1)`, or OpenMP's limit for the thread.

    Args:
        size: S.
        augmentation: of training.
        fast_jpeg: see `choose_decoder`.
    """

    name, device, part = "native", torch.device("cpu"), 16

    def __init__(self, size: int, augmentation: Augmentation, *, fast_jpeg: bool = False) -> None:
        self.size, self.augmentation, self.fast_jpeg = size, augmentation, fast_jpeg

    def __call__(self, encoded: Sequence[bytes], randoms: Sequence[Random] | None) -> Decoded:
        shape = (len(encoded), 3, self.size, self.size)
        # Channels last, as every decoder and the resize have them.
        pixels = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        faults = {}
        for row, image in enumerate(encoded):
            try:
                pixels[row] = self._decode(image, randoms and randoms[row])
            except UnusableError as error:
                faults[row] = str(error)
        return Decoded(pixels, faults)

    def _decode(self, encoded: bytes, random: Random | None) -> Tensor:
        header = read_header(encoded)
        if random is None:
            return resize_and_centre(encoded, header, self.size, fast=self.fast_jpeg)
        draw = self.augmentation.draw(header.height, header.width, random)
        pixels = crop_and_resize(encoded, header, draw.box, self.size, fast=self.fast_jpeg)
        if draw.changes_colour:
            recolour(pixels[None], [draw])
        return pixels
