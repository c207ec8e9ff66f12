"""Encoded image to uint8 pixels: the crop and resize of training or of evaluation, on the CPU.

Geometry equals open_clip's on Pillow: bicubic or bilinear with antialiasing, on uint8. S is the
model's size.

open_clip converts to RGB after it has resized, which shows where conversion and resize do not
commute: Pillow takes the nearest pixel in a palette's or a 1-bit image, weighs colours by their
alpha, and mixes CMYK's four inks. Such images go Pillow's way here too. Grey of 16 bits does not:
open_clip shows all that is brighter than 1/257 of the range as white, and we scale it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.io import ImageReadMode, decode_image

from clipfast.data.images.augmentation import Box
from clipfast.data.images.header import Header, read_header
from clipfast.data.images.preprocess import View
from clipfast.data.sources.samples import UnusableError

# torchvision 0.29 announces at every call that TorchCodec will take its decoders over.
warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
# The limit is double of what is warned of, and the header's reader keeps it.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# Resized as a whole, a longer strip would need hundreds of megabytes for the centre of it.
_LONGEST = 8

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def is_plain(header: Header) -> bool:
    """Whether the image may become RGB before it is resized."""
    return header.colour in ("grey", "rgb") and header.bits >= 8


def is_elongated(header: Header) -> bool:
    """Whether the image is too long to be resized as a whole for its centre."""
    return max(header.height, header.width) > _LONGEST * min(header.height, header.width)


def resized_size(
    height: int, width: int, size: int, resize_mode: str = "shortest"
) -> tuple[int, int]:
    """Height and width of the whole image resized for evaluation, as open_clip rounds them."""
    if resize_mode == "squash":
        return size, size
    if resize_mode == "longest":
        ratio = max(height / size, width / size)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)
    short = min(height, width)
    return int(size * height / short), int(size * width / short)


def decode(encoded: bytes, header: Header, reduction: int = 1) -> Tensor:
    """Plain image bytes to (H, W, 3) uint8 RGB; EXIF orientation is ignored, as open_clip does.

    Args:
        reduction: 2, 4 or 8 decodes a JPEG to (⌈H / reduction⌉, ⌈W / reduction⌉, 3), from fewer
            coefficients of its cosine transform.

    Raises:
        UnusableError: damaged, or of another size than its header says.
    """
    if reduction > 1:
        return _decode_reduced(encoded, header, reduction)
    if header.format == "PNG":
        # One wrong byte crashes torchvision 0.29, and with it the process.
        with opened(encoded, header) as png:
            return _as_tensor(png).permute(1, 2, 0)
    try:
        data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        image = decode_image(data, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        what = re.sub(r"^.*\.cpp:\d+\W+", "", str(error).splitlines()[0])
        raise UnusableError(f"damaged {header.format}: {what}") from None
    if image.shape[1:] != (header.height, header.width):
        raise UnusableError(
            f"damaged {header.format}: its header says {header.width} × {header.height}, its data "
            f"{image.shape[2]} × {image.shape[1]}"
        )
    return image.permute(1, 2, 0)


def crop_and_resize(
    encoded: bytes,
    header: Header,
    box: Box,
    size: int,
    *,
    interpolation: str = "bicubic",
    fast: bool = False,
) -> Tensor:
    """(3, S, S) uint8 of a part of the image.

    Args:
        interpolation: "bicubic" or "bilinear".
        fast: decodes a JPEG at the smallest of its sizes that keeps the part at S or more.

    Raises:
        UnusableError: damaged.
    """
    if not is_plain(header):
        left, top, right, bottom = box.left, box.top, box.left + box.width, box.top + box.height
        with opened(encoded, header) as image:
            part = image.crop((left, top, right, bottom))
            return _as_tensor(part.resize((size, size), _FILTERS[interpolation]))
    n = _reduction(header, min(box.height, box.width) / size) if fast else 1
    top, left = round(box.top / n), round(box.left / n)
    bottom, right = round((box.top + box.height) / n), round((box.left + box.width) / n)
    return _resize(decode(encoded, header, n)[top:bottom, left:right], size, size, interpolation)


def resize_and_centre(
    encoded: bytes,
    header: Header,
    size: int,
    view: View = View(),  # noqa: B008  immutable
    *,
    fast: bool = False,
) -> Tensor:
    """(3, S, S) uint8 of the whole image resized, cut to its centre or padded with black.

    Args:
        view: to which size, and how.
        fast: as in `crop_and_resize`.

    Raises:
        UnusableError: damaged.
    """
    height, width = header.height, header.width
    tall, wide = resized_size(height, width, size, view.resize_mode)
    top, left = _margin(tall, size), _margin(wide, size)
    if view.resize_mode == "shortest" and is_elongated(header):
        y, x = height / tall, width / wide
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        with opened(encoded, header) as image:
            return _as_tensor(image.resize((size, size), _FILTERS[view.interpolation], box))
    if not is_plain(header):
        with opened(encoded, header) as image:
            whole = image.resize((wide, tall), _FILTERS[view.interpolation])
            # What is outside of an image is 0 in its own colours: black only in most of them.
            return _as_tensor(whole.crop((left, top, left + size, top + size)))
    n = _reduction(header, min(height / tall, width / wide)) if fast else 1
    resized = _resize(decode(encoded, header, n), tall, wide, view.interpolation)
    if tall < size or wide < size:
        return pad(resized, (-left, size - wide + left, -top, size - tall + top))
    return resized[:, top : top + size, left : left + size]


def _margin(length: int, size: int) -> int:
    """Where the central `size` of `length` pixels begins: below 0 where there are fewer."""
    return -((size - length) // 2) if length < size else round((length - size) / 2)


def eval_pixels(encoded: bytes, size: int) -> Tensor:
    """(3, S, S) uint8 as evaluation shows an image.

    Raises:
        UnusableError: damaged or of another format than JPEG, PNG and WebP.
    """
    return resize_and_centre(encoded, read_header(encoded), size).contiguous()


def _resize(image: Tensor, height: int, width: int, mode: str) -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) uint8, in torch's vector code for channels last."""
    batch = image[None].permute(0, 3, 1, 2)
    if vertical_first(image.shape[0], image.shape[1], height, width):
        batch = interpolate(batch, (height, image.shape[1]), mode=mode, antialias=True)
    return interpolate(batch, (height, width), mode=mode, antialias=True)[0]


def vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether Pillow 13 resizes the height before the width; earlier ones never do.

    Pixels are cut off to uint8 between the passes, so their order shows at sharp edges.
    """
    return height - new_height > 2 * max(width - new_width, 0)


def _reduction(header: Header, scale: float) -> int:
    """Of a JPEG of which `scale` pixels or more become one, along either side."""
    if header.format != "JPEG":
        return 1
    return next((n for n in (8, 4, 2) if scale >= n), 1)


def _decode_reduced(encoded: bytes, header: Header, reduction: int) -> Tensor:
    with opened(encoded, header) as image:
        image.draft(None, (header.width // reduction, header.height // reduction))
        return _as_tensor(image).permute(1, 2, 0)


@contextmanager
def opened(encoded: bytes, header: Header) -> Iterator[Image.Image]:
    """By Pillow, which reads the pixels only where they are used; 16 bits of grey scaled to 8.

    Raises:
        UnusableError: damaged, then or while it is used.
    """
    formats = [header.format.upper()]
    try:
        if header.format == "PNG":
            with Image.open(io.BytesIO(encoded), formats=formats) as image:
                image.verify()  # its checksums, which reading pixels does not
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            yield _of_8_bits(image) if image.mode.startswith("I;16") else image
    except Exception as error:  # its parsers let through whatever they stumble over
        what = str(error).partition(" <")[0]  # of an object in memory
        raise UnusableError(f"damaged {header.format}: {what}") from None


def _of_8_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8))


def _as_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
