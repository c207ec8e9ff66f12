"""The demo's digits as a set to evaluate: which digit, on held-out writing and under shifts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipfast.demo.dataset import DigitShards, open_digit_shards
from clipfast.demo.digits import BACKGROUNDS, DIGIT_WORDS, INKS, PHRASINGS
from clipfast.eval.datasets.sets import Classification, LabelledImages
from clipfast.eval.robustness.shifts import Shift

# The demo's sentences in every ink on every paper, with the digit's word left open.
TEMPLATES = tuple(
    phrasing.format(digit="{}", ink=ink, background=background)
    for phrasing in PHRASINGS
    if "{digit}" in phrasing
    for ink in INKS
    for background in BACKGROUNDS
)


def open_demo(folder: Path) -> Classification:
    """The digits' classification: probes learn from the demo's training images, and figures are of
    its held-out writing.

    Args:
        folder: of `clipfast demo`, or of its data.

    Raises:
        UserError: no demo has made its data there.
    """
    shards = open_digit_shards(folder)
    return Classification("demo", _images(shards, "test"), train=_images(shards, "train"))


def demo_shifts(folder: Path) -> list[Shift]:
    """Those that the demo itself has: digits in inks in which training never showed them.

    Raises:
        UserError: no demo has made its data there.
    """
    return [Shift("unseen_combination", _images(open_digit_shards(folder), "unseen"))]


def _images(shards: DigitShards, split: str) -> LabelledImages:
    labels = np.array([label.digit for label in shards.labels(split)], np.int64)
    return LabelledImages(shards.samples(split), labels, tuple(DIGIT_WORDS), TEMPLATES, "clipfast")
