"""Pictures for the tests of images, and open_clip's pixels of them."""

import io
from random import Random

import numpy as np
import torch
from open_clip.transform import image_transform
from PIL import Image
from sklearn.datasets import load_sample_image

from clipfast.data.images.augmentation import Augmentation

PHOTO = Image.fromarray(load_sample_image("china.jpg"))
SMALL = PHOTO.resize((161, 107))
SIZE = 96
CROP = Augmentation(scale=(0.3, 0.9))


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _transparent():
    image = SMALL.convert("RGBA")
    alpha = np.random.default_rng(0).integers(0, 256, (107, 161), np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def _four_inks():
    inks = np.random.default_rng(1).integers(0, 256, (27, 41, 4), np.uint8)
    return Image.fromarray(inks, "CMYK").resize((161, 107))


PICTURES = {
    "large photo": encoded(PHOTO, quality=90),
    "small photo": encoded(SMALL),
    "progressive": encoded(SMALL, progressive=True),
    "4:4:4": encoded(SMALL, subsampling=0),
    "tall": encoded(PHOTO.resize((150, 500))),
    "wide": encoded(PHOTO.resize((500, 60))),
    "grey": encoded(SMALL.convert("L")),
    "four inks": encoded(_four_inks()),
    "PNG": encoded(SMALL, "PNG"),
    "grey PNG": encoded(SMALL.convert("L"), "PNG"),
    "keyed PNG": encoded(SMALL, "PNG", transparency=(1, 2, 3)),
    "transparent PNG": encoded(_transparent(), "PNG"),
    "grey with alpha": encoded(_transparent().convert("LA"), "PNG"),
    "palette": encoded(SMALL.quantize(64), "PNG"),
    "palette with alpha": encoded(SMALL.quantize(16), "PNG", transparency=3),
    "1 bit": encoded(SMALL.convert("1"), "PNG"),
    "WebP": encoded(SMALL, "WEBP"),
    "lossless WebP": encoded(SMALL, "WEBP", lossless=True),
    "transparent WebP": encoded(_transparent(), "WEBP"),
    "1 × 1": encoded(SMALL.resize((1, 1))),
    "3 × 1500": encoded(SMALL.resize((1500, 3))),
}


def open_clip_train_pixels(data, size, draw):
    """(3, S, S) of the same crop."""
    top, left, height, width = draw.box
    image = Image.open(io.BytesIO(data)).crop((left, top, left + width, top + height))
    return as_tensor(image.resize((size, size), Image.Resampling.BICUBIC).convert("RGB"))


def open_clip_eval_pixels(data, size):
    transform = image_transform(size, is_train=False)
    transform.transforms = transform.transforms[:-2]  # before it makes floats
    return as_tensor(transform(Image.open(io.BytesIO(data))))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def difference(pixels, expected):
    return (pixels.int() - expected.int()).abs().max().item()


def assert_equals_open_clip(decoder, data, size=SIZE, seeds=3):
    """Random crops of `CROP` and evaluation's, to 2/255."""
    width, height = Image.open(io.BytesIO(data)).size
    pixels, faults = decoder([data] * seeds, [Random(seed) for seed in range(seeds)])
    assert not faults
    for seed in range(seeds):
        draw = CROP.draw(height, width, Random(seed))
        assert difference(pixels[seed], open_clip_train_pixels(data, size, draw)) <= 2
    pixels, faults = decoder([data], None)
    assert not faults
    assert difference(pixels[0], open_clip_eval_pixels(data, size)) <= 2
