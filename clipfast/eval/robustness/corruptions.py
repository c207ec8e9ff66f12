"""Built-in corruptions of images: noise, blur, light, compression and rotation, at five severities.

H × W pixels, s = min(H, W).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 224  # of ImageNet-C's images
_HALF_PIXEL = 0.4  # standard deviation of a blur that a single pixel hides


def corrupt(image: Pixels, kind: str, severity: int, random: np.random.Generator) -> Pixels:
    """The image with one corruption, which takes it further away the more severe it is. (Blocks of
    "pixelate" may fit a small image by chance; over a set of images they do so too.)

    ==============  ==================  ========================  ==================================
    kind            parameter           severities 1 to 5         beside ImageNet-C
    ==============  ==================  ========================  ==================================
    gaussian_noise  σ, of a range of 1  .08 .12 .18 .26 .38       the same
    shot_noise      photons at white    60 25 12 5 3              the same
    gaussian_blur   σ, in 224ths of s   1 2 3 4 6                 the same at s = 224; half a pixel
                                                                  is added (in squares), so that 28
                                                                  pixels are blurred too
    brightness      what is added       .1 .2 .3 .4 .5            to R, G and B; there to HSV's V
    contrast        what is left of it  .4 .3 .2 .1 .05           the same
    pixelate        what is left of s   .6 .5 .4 .3 .25           the same, enlarged to the nearest
    jpeg            quality             25 18 15 10 7             the same
    rotation        degrees             6 12 18 24 30             not there; to either side, the
                                                                  edge's pixels fill the corners
    ==============  ==================  ========================  ==================================

    Args:
        image: (H, W, 3) RGB.
        kind: one of `KINDS`.
        severity: 1 to 5.
        random: of noise, and of the side to which the image turns.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: another kind or severity, or no RGB image.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261; the table's figures are those of their
        code.
    """
    check(kind, severity)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected uint8 (H, W, 3); got {image.dtype} {image.shape}")
    change, parameters = _CHANGES[kind]
    return change(image, parameters[severity - 1], random)


def check(kind: str, severity: int) -> None:
    """Raises:
    ValueError: no such corruption.
    """
    if kind not in _CHANGES:
        raise ValueError(f"corruption: expected one of {', '.join(KINDS)}; got {kind!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity: expected 1 to {SEVERITIES[-1]}; got {severity!r}")


def as_jpeg(image: Pixels, severity: int) -> bytes:
    """The file that "jpeg" is read from."""
    return _jpeg(image, int(_CHANGES["jpeg"][1][severity - 1]))


def _gaussian_noise(image: Pixels, sigma: float, random: np.random.Generator) -> Pixels:
    return _rounded(_unit(image) + random.standard_normal(image.shape, np.float32) * sigma)


def _shot_noise(image: Pixels, photons: float, random: np.random.Generator) -> Pixels:
    return _rounded((random.poisson(_unit(image) * photons) / photons).astype(np.float32))


def _gaussian_blur(image: Pixels, width: float, random: np.random.Generator) -> Pixels:
    sigma = math.hypot(width * min(image.shape[:2]) / SIDE, _HALF_PIXEL)
    return _rounded(gaussian_filter(_unit(image), (sigma, sigma, 0), mode="nearest"))


def _brightness(image: Pixels, light: float, random: np.random.Generator) -> Pixels:
    return _rounded(_unit(image) + light)


def _contrast(image: Pixels, share: float, random: np.random.Generator) -> Pixels:
    values = _unit(image)
    mean = values.mean((0, 1))
    return _rounded((values - mean) * share + mean)


def _pixelate(image: Pixels, share: float, random: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    few = max(1, int(width * share)), max(1, int(height * share))
    blocks = Image.fromarray(image).resize(few, Image.Resampling.BOX)
    return np.array(blocks.resize((width, height), Image.Resampling.NEAREST))


def _recompressed(image: Pixels, quality: float, random: np.random.Generator) -> Pixels:
    with Image.open(io.BytesIO(_jpeg(image, int(quality)))) as file:
        return np.array(file)


def _rotation(image: Pixels, degrees: float, random: np.random.Generator) -> Pixels:
    turned = degrees if random.random() < 0.5 else -degrees
    return _rounded(rotate(_unit(image), turned, reshape=False, order=1, mode="nearest"))


_CHANGES: dict[str, tuple[Callable[[Pixels, float, np.random.Generator], Pixels], tuple]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_recompressed, (25, 18, 15, 10, 7)),
    "rotation": (_rotation, (6, 12, 18, 24, 30)),
}
KINDS = tuple(_CHANGES)


def _jpeg(image: Pixels, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _unit(image: Pixels) -> Values:
    return image.astype(np.float32) / np.float32(255)


def _rounded(values: Values) -> Pixels:
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)
