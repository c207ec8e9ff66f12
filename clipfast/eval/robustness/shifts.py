"""Shifts of a reference set: other images of its classes.

N images, C classes of the reference, K of the shift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.datasets.imagenet import open_imagenet_v2, open_wnid_folder
from clipfast.eval.datasets.sets import Classification, LabelledImages
from clipfast.eval.prompts.reading import Prompts
from clipfast.eval.robustness.corrupted import corrupted
from clipfast.eval.robustness.corruptions import KINDS, SEVERITIES
from clipfast.eval.robustness.objectnet import open_objectnet

_IMAGENET = 1000


@dataclass(frozen=True)
class Shift:
    """Attributes:
    name: "imagenet-a", "gaussian_noise 3".
    images: labelled by the shift's own classes, which a zero-shot classifier is made of.
    columns: the reference's classes that each of its own consists of; None where they are the same.
    corruption: the kind of a built-in one.
    """

    name: str
    images: LabelledImages
    columns: tuple[tuple[int, ...], ...] | None = None
    corruption: str | None = None

    def logits(self, logits_NC: Tensor) -> Tensor:
        """(N, K) of a classifier of the reference's classes: what consists of several of them has
        its likeliest one's, and classes that the shift lacks are left out.

        Source: Taori et al. 2020, arXiv 2007.00644; Radford et al. 2021, arXiv 2103.00020, §3.3.
        """
        if self.columns is None:
            return logits_NC
        return torch.stack([logits_NC[:, list(c)].amax(dim=1) for c in self.columns], dim=1)


def shifts_of(
    reference: Classification,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
) -> list[Shift]:
    """The reference's test images under built-in corruptions.

    Raises:
        ValueError: another kind or severity; see `corruptions.corrupt`.
    """
    return [
        Shift(
            f"{kind} {severity}", corrupted(reference.test, kind, severity, seed), corruption=kind
        )
        for kind in kinds
        for severity in severities
    ]


def open_shift_folder(path: Path, reference: Classification) -> Shift:
    """A user's own: a folder for each class, named as the reference's, of which it may lack some.

    Raises:
        UserError: no images, or a class that the reference does not have.
    """
    images = open_class_folder(path)
    column = {name: number for number, name in enumerate(reference.test.classes)}
    stray = [name for name in images.classes if name not in column]
    if stray:
        raise UserError(
            f"{path}: expected classes of {reference.name}, such as {reference.test.classes[0]}; "
            f"got {stray[0]}"
        )
    columns = tuple((column[name],) for name in images.classes)
    own = reference.test
    images = images._replace(templates=own.templates, prompts=own.prompts)
    return Shift(path.resolve().name, images, columns)


def natural_shifts(root: Path, reference: Classification) -> list[Shift]:
    """Those of `NATURAL` that are in the folder.

    Args:
        root: holds them under the names of their archives.
        reference: ImageNet.

    Raises:
        UserError: the reference is another, or one that is there is not as it should be.
    """
    if len(reference.test.classes) != _IMAGENET:
        raise UserError(
            f"natural shifts: expected ImageNet's {_IMAGENET:,} classes as reference; got "
            f"{len(reference.test.classes):,} of {reference.name}"
        )
    found = []
    for name, (folders, opening) in NATURAL.items():
        path = next((root / folder for folder in folders if (root / folder).is_dir()), None)
        if path is not None:
            images, columns = opening(path, reference.test)
            found.append(Shift(name, images, columns))
    return found


_Columns = tuple[tuple[int, ...], ...] | None


def _open_v2(path: Path, reference: LabelledImages) -> tuple[LabelledImages, _Columns]:
    return open_imagenet_v2(path), None


def _open_wnids(path: Path, reference: LabelledImages) -> tuple[LabelledImages, _Columns]:
    prompts = Prompts(reference.classes, reference.templates)
    return open_wnid_folder(path, prompts, reference.prompts)


# By CLIP_benchmark's names: the folders of the archives, and what opens them.
NATURAL: dict[
    str,
    tuple[
        tuple[str, ...],
        Callable[[Path, LabelledImages], tuple[LabelledImages, _Columns]],
    ],
] = {
    "imagenetv2": (
        (
            "imagenetv2",
            "ImageNetV2-matched-frequency",
            "imagenetv2-matched-frequency-format-val",
        ),
        _open_v2,
    ),
    "imagenet_sketch": (("imagenet_sketch", "imagenet-sketch", "sketch"), _open_wnids),
    "imagenet-a": (("imagenet-a",), _open_wnids),
    "imagenet-r": (("imagenet-r",), _open_wnids),
    "objectnet": (("objectnet", "objectnet-1.0"), open_objectnet),
}

# The paper's other two, and why they are not among these.
_OF_VIDEOS = (
    "its images are frames of videos, whose labels and neighbours are in tables of their own"
)
NOT_READ = {"youtube-bb": _OF_VIDEOS, "imagenet-vid": _OF_VIDEOS}
