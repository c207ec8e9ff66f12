"""Encoded images decoded to see that they can be, and large ones made small."""

from __future__ import annotations

import io

from PIL import Image
from torch.nn.functional import interpolate
from torchvision.io import encode_jpeg

from clipfast.data.images.decode import decode, is_plain, opened
from clipfast.data.images.header import Header, read_header

_LONGEST = 65500  # pixels in a row of a JPEG, to libjpeg


def check_image(encoded: bytes) -> Header:
    """Decodes the whole image.

    Raises:
        UnusableError: that cannot be done.
    """
    header = read_header(encoded)
    if is_plain(header):
        decode(encoded, header)
    else:
        with opened(encoded, header) as image:
            image.load()
    return header


def smaller(encoded: bytes, side: int, quality: int) -> bytes | None:
    """A baseline JPEG, 4:2:0, of the image with its short side resized to `side`; None where it is
    no longer than that, or the other one is too long for a JPEG.

    Bicubic with antialiasing, converted to RGB where open_clip does, EXIF orientation ignored: as
    in training.

    Raises:
        UnusableError: the image cannot be decoded.
    """
    header = read_header(encoded)
    short = min(header.height, header.width)
    height, width = (round(side * n / short) for n in (header.height, header.width))
    if short <= side or max(height, width) > _LONGEST:
        check_image(encoded)
        return None
    if is_plain(header):
        batch = decode(encoded, header)[None].permute(0, 3, 1, 2)
        pixels = interpolate(batch, (height, width), mode="bicubic", antialias=True)[0]
        channels = pixels[:1] if header.colour == "grey" else pixels
        return encode_jpeg(channels.contiguous(), quality).numpy().tobytes()
    with opened(encoded, header) as image:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
    written = io.BytesIO()
    plain = resized if resized.mode == "L" else resized.convert("RGB")
    plain.save(written, "JPEG", quality=quality, subsampling="4:2:0")
    return written.getvalue()
