"""Colours equal those of torchvision's transforms on Pillow, to the bit."""

from random import Random

import numpy as np
import pytest
import torch
from pictures import PHOTO, as_tensor
from PIL import Image
from torchvision.transforms import functional as F

from clipfast.data.images.augmentation import Augmentation, Box, Draw
from clipfast.data.images.colour import recolour, recolour_batch

BOX = Box(0, 0, 1, 1)


def colours():
    """A photo, and every kind of colour: random, grey, dark, and with equal channels."""
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    pixels[:40, :, 1] = pixels[:40, :, 0]
    pixels[40:60] //= 40
    pixels[60:80] = pixels[60:80, :, :1]
    pixels[80:] = np.array(PHOTO)[:80, :160]
    return Image.fromarray(pixels)


def with_pillow(image, draw):
    for name, factor in draw.jitter:
        image = getattr(F, f"adjust_{name}")(image, factor)
    return F.rgb_to_grayscale(image, 3) if draw.grey else image


SINGLE = [
    *(
        (name, f)
        for name in ("brightness", "contrast", "saturation")
        for f in (0.0, 0.37, 1.0, 1.9)
    ),
    *(("hue", f) for f in (-0.5, -0.2, -0.001, 0.0, 0.1, 0.5)),
]
DRAWS = [
    *(Draw(BOX, (operation,)) for operation in SINGLE),
    Draw(BOX),
    Draw(BOX, grey=True),
    Draw(BOX, (("hue", 0.1),), grey=True),
]


@pytest.mark.parametrize("function", [recolour, recolour_batch])
def test_every_operation_equals_pillows(function):
    image = colours()
    batch = as_tensor(image).repeat(len(DRAWS), 1, 1, 1)
    function(batch, DRAWS)
    for pixels, draw in zip(batch, DRAWS, strict=True):
        assert torch.equal(pixels, as_tensor(with_pillow(image, draw))), draw


@pytest.mark.parametrize("function", [recolour, recolour_batch])
def test_operations_follow_each_other_in_their_drawn_order(function):
    augmentation = Augmentation(
        color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, gray_scale_prob=0.2
    )
    draws = [augmentation.draw(160, 160, Random(seed)) for seed in range(24)]
    image = colours()
    batch = as_tensor(image).repeat(24, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    function(batch, draws)
    for pixels, draw in zip(batch, draws, strict=True):
        assert torch.equal(pixels, as_tensor(with_pillow(image, draw))), draw
