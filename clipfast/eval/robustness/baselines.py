"""Models to expect accuracy under a shift from: logistic regressions on raw pixels, trained on
growing amounts of the reference's training images.

They are standard models in the sense of Taori et al. 2020: trained on the reference, and on nothing
before. Theirs are networks by the hundred; the line through ours is what pixels alone foretell.

N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipfast.data.images.decode import eval_pixels
from clipfast.data.loader import take_one_core
from clipfast.data.sources.samples import UnusableError
from clipfast.errors import UserError
from clipfast.eval.datasets.sets import Classification, LabelledImages
from clipfast.eval.linear_probe import Probe, fit
from clipfast.eval.robustness.evaluation import RobustnessRow
from clipfast.eval.robustness.shifts import Shift
from clipfast.eval.splits import places_in_class

_SIDE = 16  # pixels, of images as evaluation shows them
_MOST_TRAIN, _MOST_TEST = 5_000, 1_000  # images; more of them hardly move the line
_MODELS = 6
_STRENGTH = 1.0  # λ, as scikit-learn has it


def pixel_baselines(
    reference: Classification,
    shifts: Sequence[Shift],
    *,
    workers: int = 1,
    tell: Callable[[], None] | None = None,
) -> list[RobustnessRow]:
    """Their accuracies on the reference and under the shifts, the one of the fewest images first.

    They are of the same images of the reference and of its corruptions, at most 1,000.

    Args:
        reference: with training images.
        workers: threads that read and decode.
        tell: called after the reference, and after each shift.

    Raises:
        UserError: no training images, or a set of which no image can be used.
    """
    if reference.train is None:
        raise UserError(
            f"baseline: expected training images of {reference.name}, for regressions on their "
            "pixels; got test images alone"
        )
    classes = len(reference.test.classes)
    train = _read(reference.train, _MOST_TRAIN, workers)
    sizes = np.geomspace(min(2 * classes, len(train.labels)), len(train.labels), _MODELS)
    counts = sorted(set(sizes.round().astype(int).tolist()))
    probes = [fit(train.values[:n], train.labels[:n], classes, _STRENGTH) for n in counts]
    accuracies = []
    for shift in (Shift(reference.name, reference.test), *shifts):
        accuracies.append(_accuracies(probes, shift, workers))
        if tell is not None:
            tell()
    return [
        RobustnessRow(f"pixels of {n:,} images", "baseline", of_reference, tuple(of_shifts))
        for n, (of_reference, *of_shifts) in zip(counts, zip(*accuracies, strict=True), strict=True)
    ]


class _Pixels(NamedTuple):
    """Attributes:
    values: (N, 3 · SIDE²) from 0 to 1.
    labels: (N,) int64.
    """

    values: Tensor
    labels: Tensor


def _accuracies(probes: Sequence[Probe], shift: Shift, workers: int) -> list[float]:
    values, labels = _read(shift.images, _MOST_TEST, workers)
    return [
        (shift.logits(probe.predict(values)).argmax(dim=1) == labels).double().mean().item()
        for probe in probes
    ]


def _read(images: LabelledImages, most: int, workers: int) -> _Pixels:
    """Those that can be used, in a random order of which every beginning has all classes about
    equally; the same images wherever the labels are the same."""
    places = places_in_class(torch.from_numpy(images.labels), seed=0)
    numbers = places.argsort(stable=True)[:most].numpy()

    def pixels(number: int) -> Tensor | None:
        try:
            return eval_pixels(images.samples.read(number).image, _SIDE).flatten()
        except UnusableError:
            return None

    with ThreadPoolExecutor(max(1, workers), "clipfast-pixels", take_one_core) as pool:
        rows = list(pool.map(pixels, numbers.tolist()))
    usable = [place for place, row in enumerate(rows) if row is not None]
    if not usable:
        names = ", ".join(source.name for source in images.samples.sources)
        raise UserError(f"{names}: expected images that can be used; got none")
    values = torch.stack([row for row in rows if row is not None]).float() / 255
    return _Pixels(values, torch.from_numpy(images.labels[numbers[usable]]))
