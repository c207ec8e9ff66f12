"""Pillow's bicubic resize as three passes of one dimension each, for a library that has such.

H and W are an image's height and width, S the model's size.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfast.data.images.decode import vertical_first

# Name to axis. The height is resized in the first or the last, the other of which does nothing.
PASSES = {"height_before": 0, "width": 1, "height_after": 0}


class Pass(NamedTuple):
    """One pass over an image that is padded with zeros along one axis.

    Attributes:
        anchor: (1,) int32, where the padded image begins: minus the margin.
        extent: (1,) int32, its length along the axis.
        start, end: (2,) float32, the region of the padded image that is resized.
        size: () float32, the region's length afterwards.
        gain: (size, 1, 1) or (1, size, 1) float32, 1 over the weights' share inside the image.
    """

    anchor: NDArray[np.int32]
    extent: NDArray[np.int32]
    start: NDArray[np.float32]
    end: NDArray[np.float32]
    size: NDArray[np.float32]
    gain: NDArray[np.float32]


def plan(height: int, width: int, tall: int, wide: int, size: int) -> tuple[Pass, Pass, Pass]:
    """The `PASSES` that resize H × W to tall × wide, and keep the central S × S of it."""
    rows = _centre(height, tall, size)
    columns = _centre(width, wide, size)
    before = vertical_first(height, width, tall, wide)
    unchanged = size if before else height
    first = _pass(0, height, width, rows, size) if before else _unchanged(0, height, width)
    second = _pass(1, width, unchanged, columns, size)
    third = _unchanged(0, size, size) if before else _pass(0, height, size, rows, size)
    return first, second, third


def _centre(length: int, resized: int, size: int) -> tuple[float, float]:
    """Where the central `size` of the `resized` pixels lie in the original ones."""
    first = round((resized - size) / 2)
    return first * length / resized, (first + size) * length / resized


def _unchanged(axis: int, length: int, other: int) -> Pass:
    return _pass(axis, length, other, (0, length), length)


def _pass(axis: int, length: int, other: int, part: tuple[float, float], size: int) -> Pass:
    start, end = part
    margin = _reach((end - start) / size) + 1
    along = slice(None, None, 1 if axis == 0 else -1)
    return Pass(
        np.array([-margin], np.int32),
        np.array([length + 2 * margin], np.int32),
        np.array([margin + start, 0][along], np.float32),
        np.array([margin + end, other][along], np.float32),
        np.array(size, np.float32),
        border_gain(length, start, end, size).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)),
    )


def _reach(scale: float) -> int:
    return math.ceil(2 * max(scale, 1.0))


@lru_cache(4096)
def border_gain(length: int, start: float, end: float, size: int) -> NDArray[np.float32]:
    """(size,) Σ of all weights / Σ of those on 0 … length − 1, of an antialiased cubic filter.

    Args:
        start, end: the part of the line that is resized to `size`.
    """
    scale = (end - start) / size
    reach = _reach(scale) + 1
    centres = start + (np.arange(size) + 0.5) * scale
    taps = np.floor(centres)[:, None] + np.arange(-reach, reach + 1)
    weights = _cubic((taps + 0.5 - centres[:, None]) / max(scale, 1.0))
    inside = weights * ((taps >= 0) & (taps < length))
    return (weights.sum(1) / inside.sum(1)).astype(np.float32)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = −1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
