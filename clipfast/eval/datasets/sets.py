"""The forms that an evaluation's data take.

N images, C classes, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Source
from clipfast.errors import UserError

DEFAULT_TEMPLATES: tuple[str, ...] = ("a photo of a {}.",)


class LabelledImages(NamedTuple):
    """Attributes:
    samples: images; captions are not read.
    labels: (N,) int64, each one's class.
    classes: their names.
    templates: sentences with ``{}`` where the name goes.
    prompts: whose names and sentences these are: "the data", "clipfast", "open_clip" or a file.
    """

    samples: SampleSet
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: str = "the data"


class CaptionedImages(NamedTuple):
    """Attributes:
    samples: images with one or several captions each, which `Sample.captions` has.
    """

    samples: SampleSet


@dataclass(frozen=True)
class Classification:
    """Attributes:
    name: as CLIP_benchmark has it: "mnist", "cifar10", "food101".
    test: what figures are of.
    train: what probes learn from; None is a set for zero-shot alone.
    validation: what a probe's strength is chosen on; None holds a part of `train` out.
    per_class: the paper gives the mean over classes, not over images.
    """

    name: str
    test: LabelledImages
    train: LabelledImages | None = None
    validation: LabelledImages | None = None
    per_class: bool = False


@dataclass(frozen=True)
class Retrieval:
    """Attributes:
    name: "flickr30k", "mscoco_captions", or that of the file.
    test: the pairs.
    """

    name: str
    test: CaptionedImages


def labelled(
    source: Source,
    labels: NDArray[np.integer] | Sequence[int],
    classes: Sequence[str],
    templates: Sequence[str],
    prompts: str,
) -> LabelledImages:
    """The images of one source.

    Raises:
        UserError: no image, not one label for each, or a label without a class.
    """
    labels_N = np.asarray(labels, np.int64)
    images = int(source.counts.sum())
    if labels_N.shape != (images,):
        raise UserError(
            f"{source.name}: expected a label for each of {images} images; got {len(labels_N)}"
        )
    samples = SampleSet([source])
    if labels_N.min() < 0 or labels_N.max() >= len(classes):
        raise UserError(
            f"{source.name}: expected labels from 0 to {len(classes) - 1}, one of "
            f"{len(classes)} classes; got {labels_N.min()} to {labels_N.max()}"
        )
    return LabelledImages(samples, labels_N, tuple(classes), tuple(templates), prompts)
