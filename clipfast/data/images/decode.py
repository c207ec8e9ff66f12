"""Encoded image to uint8 pixels, with the crop and resize of training or of evaluation.

Geometry equals torchvision's and open_clip's: bicubic with antialiasing, on uint8, in torchvision's
native code. H and W are an image's height and width, S the model's input size.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from clipfast.errors import UserError

# torchvision 0.29 announces at every call that TorchCodec will take its decoders over.
warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)

_BICUBIC = F.InterpolationMode.BICUBIC


class CorruptImageError(UserError):
    """Bytes that are not a whole image of a known format."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RandomCrop:
    """open_clip's training crop.

    Attributes:
        scale: smallest and largest share of the image's area.
        ratio: narrowest and widest aspect ratio.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, height: int, width: int, random: np.random.Generator) -> Box:
        """Ten tries, then the largest central box in range."""
        low, high = (math.log(r) for r in self.ratio)
        for _ in range(10):
            area = height * width * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = random.integers(height - h + 1), random.integers(width - w + 1)
                return Box(int(top), int(left), h, w)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w = min(width, round(height * ratio))
        h = min(height, round(w / ratio))
        return Box((height - h) // 2, (width - w) // 2, h, w)


def decode(encoded: bytes) -> Tensor:
    """JPEG, PNG or WebP bytes to (3, H, W) uint8 RGB; EXIF orientation is ignored, as open_clip
    does.

    Raises:
        CorruptImageError: empty, damaged or of another format.
    """
    if not encoded:
        raise CorruptImageError("empty image")
    try:
        data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        image = decode_image(data, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise CorruptImageError(f"undecodable image: {str(error).splitlines()[0]}") from None
    if image.ndim != 3:
        raise CorruptImageError(f"expected one image; got an animation of {len(image)}")
    # A PNG may have 16 bits per channel.
    return image if image.dtype == torch.uint8 else (image.float() / 257).round().to(torch.uint8)


def train_pixels(
    encoded: bytes, size: int, crop: RandomCrop, random: np.random.Generator
) -> Tensor:
    """(3, S, S) uint8 of a random crop."""
    image = decode(encoded)
    box = crop.box(image.shape[1], image.shape[2], random)
    return F.resized_crop(image, *box, size=[size, size], interpolation=_BICUBIC, antialias=True)


def eval_pixels(encoded: bytes, size: int) -> Tensor:
    """(3, S, S) uint8: the short side resized to S, then the centre."""
    image = F.resize(decode(encoded), [size], interpolation=_BICUBIC, antialias=True)
    return F.center_crop(image, [size, size])
