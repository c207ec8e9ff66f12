"""A set of images under a corruption, with the labels and places of the set."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from PIL import Image

from clipfast.data.images.decode import opened, resized_size
from clipfast.data.images.header import read_header
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, Place, Sample
from clipfast.eval.datasets.sets import LabelledImages
from clipfast.eval.robustness.corruptions import SIDE, as_jpeg, check, corrupt

_VERSION = 1  # of the corruptions: other pixels need another number, for caches of their features


def corrupted(
    images: LabelledImages, kind: str, severity: int, seed: int = 0, side: int = SIDE
) -> LabelledImages:
    """The images under a corruption; see `CorruptedImages`."""
    source = CorruptedImages(images.samples, kind, severity, seed, side)
    return images._replace(samples=SampleSet([source]))


class CorruptedImages:
    """The images of a set as PNG, those under "jpeg" as JPEG; each the same at every reading.

    Args:
        samples: the set.
        kind, severity: see `corruptions.corrupt`.
        seed: with a sample's number it decides all that is left to chance.
        side: images whose shorter side is longer are shrunk to it beforehand. ImageNet-C's are as
            small, without which a photograph of many pixels, shrunk by the model's preprocessing,
            would hardly show its noise.

    Raises:
        ValueError: another kind or severity.
    """

    def __init__(
        self, samples: SampleSet, kind: str, severity: int, seed: int = 0, side: int = SIDE
    ) -> None:
        check(kind, severity)
        self._samples, self._side = samples, side
        self._kind, self._severity, self._seed = kind, severity, seed
        sources = ", ".join(source.name for source in samples.sources)
        self.name = f"{sources} under {kind} {severity}"
        self.counts = np.concatenate([source.counts for source in samples.sources])

    @cached_property
    def fingerprint(self) -> str:
        how = (_VERSION, self._kind, self._severity, self._seed, self._side)
        return hashlib.sha256(f"{self._samples.fingerprint} {how}".encode()).hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        sample = self._samples.read(number, image=image)
        return sample._replace(image=self._corrupted(sample.image, number)) if image else sample

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return self._samples.place(number)

    def faults(self) -> Iterator[Fault]:
        """See `Source.faults`."""
        return self._samples.faults()

    def _corrupted(self, encoded: bytes, number: int) -> bytes:
        pixels = np.asarray(_shrunk(encoded, self._side))
        if self._kind == "jpeg":
            return as_jpeg(pixels, self._severity)
        random = np.random.default_rng([self._seed, number])
        buffer = io.BytesIO()
        changed = corrupt(pixels, self._kind, self._severity, random)
        # Decoded at once: compressing would take longer than all else here.
        Image.fromarray(changed).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()


def _shrunk(encoded: bytes, side: int) -> Image.Image:
    """In RGB.

    Raises:
        UnusableError: damaged, or no image.
    """
    with opened(encoded, read_header(encoded)) as image:
        rgb = image.convert("RGB")
        if min(rgb.size) <= side:
            return rgb
        height, width = resized_size(rgb.height, rgb.width, side)
        return rgb.resize((width, height), Image.Resampling.BICUBIC)
