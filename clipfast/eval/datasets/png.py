"""Pixels as PNG, so that every image reaches the decoder as a file would."""

from __future__ import annotations

import io

from PIL import Image

_FAST = 1  # zlib's level: a PNG lives until it is decoded


def as_png(image: Image.Image) -> bytes:
    """Encoded without loss, grey as it is and all else in RGB."""
    buffer = io.BytesIO()
    shown = image if image.mode in ("L", "RGB") else image.convert("RGB")
    shown.save(buffer, "PNG", compress_level=_FAST)
    return buffer.getvalue()
