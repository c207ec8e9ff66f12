"""What there is to measure in samples, and how it is distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONTEXT_LENGTH = 77
_QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}


class Quantity(NamedTuple):
    """Attributes:
    title: what the table and the picture call it.
    wide: its values spread over orders of magnitude.
    digits: after the point.
    """

    title: str
    wide: bool = False
    digits: int = 0


QUANTITIES = {
    "caption_tokens": Quantity("caption, CLIP tokens"),
    "caption_characters": Quantity("caption, characters"),
    "image_width": Quantity("image width, pixels"),
    "image_height": Quantity("image height, pixels"),
    "aspect_ratio": Quantity("width / height", digits=2),
    "image_bytes": Quantity("image, bytes", wide=True),
}


class Measures:
    """Of samples, part by part.

    Attributes:
        samples: how many were measured.
        formats: of their images, as JPEG.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.formats = Counter[str]()
        self._parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in QUANTITIES}

    def add(self, name: str, values: Sequence[float]) -> None:
        """Args:
        name: one of `QUANTITIES`.
        values: of further images or captions.
        """
        self._parts[name].append(np.asarray(values, np.float32))

    def merge(self, other: Measures) -> None:
        self.samples += other.samples
        self.formats += other.formats
        for name, parts in other._parts.items():
            self._parts[name] += parts

    def values(self, name: str) -> NDArray[np.float32]:
        """Of one of `QUANTITIES`."""
        return np.concatenate([np.empty(0, np.float32), *self._parts[name]])

    def cut(self) -> int:
        """How many captions are longer than CLIP's context."""
        return int((self.values("caption_tokens") > CONTEXT_LENGTH).sum())

    def distribution(self, name: str) -> dict[str, float]:
        """Quantiles and the mean of one of `QUANTITIES`; empty where there are no values."""
        values = self.values(name).astype(np.float64)
        if not len(values):
            return {}
        quantiles = np.quantile(values, list(_QUANTILES.values())).tolist()
        return dict(zip(_QUANTILES, quantiles, strict=True)) | {"mean": float(values.mean())}
