"""Shards for `clipfast bench train` where none are named: photographs, captions of 18 tokens."""

from __future__ import annotations

import random
from pathlib import Path

from clipfast_bench.inputs.captions import captions
from clipfast_bench.inputs.photos import encode, opened, photos
from PIL import Image

from clipfast.data.sources.shard_writer import ShardWriter

SAMPLES, SHARDS = 512, 8
_MARGIN = 8 / 7  # stored images are a little larger than the model's, as most training sets' are
_JPEG_QUALITY = 90


def make_shards(folder: Path, image_size: int) -> str:
    """Writes SHARDS tars of pieces of photographs.

    Args:
        folder: exists.
        image_size: the model's; the pieces' short side is 8/7 of it, their shape 3 : 2.

    Returns:
        Their names, for `--train-data`.
    """
    rng, whole = random.Random(0), [opened(photo) for photo in photos()]
    side = round(_MARGIN * image_size)
    with ShardWriter(folder, "photos", SAMPLES // SHARDS) as writer:
        for number, caption in enumerate(captions(SAMPLES)):
            piece = _piece(whole[number % len(whole)], rng).resize(
                (3 * side // 2, side), Image.Resampling.BICUBIC
            )
            writer.write(encode(piece, quality=_JPEG_QUALITY), caption)
    return str(folder / f"photos-{{000000..{SHARDS - 1:06d}}}.tar")


def _piece(photo: Image.Image, rng: random.Random) -> Image.Image:
    """A part of it, of between a quarter of its area and all."""
    share = rng.uniform(0.5, 1)
    width, height = int(share * photo.width), int(share * photo.width / 1.5)
    height = min(height, photo.height)
    left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))
