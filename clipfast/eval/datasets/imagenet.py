"""ImageNet and ImageNetV2, with the class names and sentences that open_clip installs."""

from __future__ import annotations

from pathlib import Path

from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import ClassFolder, class_folders
from clipfast.eval.datasets.sets import Classification, LabelledImages, labelled
from clipfast.eval.prompts.reading import PLACE, Prompts

_CLASSES = 1000
# Where the archive, and torchvision's users, have the folders of the splits.
_FOLDERS = ("imagenet1k", "imagenet", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_SPLITS = _TRAIN, _VALIDATION = "train", "val"
# What open_clip's loader, and the archive itself, call the folder.
_V2_FOLDERS = ("ImageNetV2-matched-frequency", "imagenetv2-matched-frequency-format-val")


def open_imagenet(path: Path) -> LabelledImages:
    """The validation images, in the 1,000 folders n01440764 to n15075141.

    Raises:
        UserError: another number of folders, no images, or no open_clip.
    """
    return _open(path, class_folders(path))


def open_imagenet_v2(path: Path) -> LabelledImages:
    """Those of the folders 0 to 999, or of the archive's folder that holds them.

    Raises:
        UserError: as `open_imagenet`.
    """
    path = next((path / name for name in _V2_FOLDERS if (path / name).is_dir()), path)
    folders = class_folders(path)
    if sorted(folders) != sorted(map(str, range(_CLASSES))):
        raise UserError(
            f"{path}: expected the folders 0 to {_CLASSES - 1}, one for each class; got "
            f"{len(folders)}, first {folders[0]}"
        )
    return _open(path, sorted(folders, key=int))


def open_imagenet_splits(root: Path) -> Classification:
    """The validation images, and the training images where they are: in ``val`` and ``train``, or
    the validation images' folders alone.

    Raises:
        UserError: as `open_imagenet`.
    """
    inside = [root, *(root / name for name in _FOLDERS)]
    path = next((p for p in inside if any((p / name).is_dir() for name in _SPLITS)), root)
    if not (path / _VALIDATION).is_dir():
        return Classification("imagenet1k", open_imagenet(path))
    train = open_imagenet(path / _TRAIN) if (path / _TRAIN).is_dir() else None
    return Classification("imagenet1k", open_imagenet(path / _VALIDATION), train)


def open_wnid_folder(
    path: Path, prompts: Prompts, whose: str = "open_clip"
) -> tuple[LabelledImages, tuple[tuple[int, ...], ...]]:
    """Folders named by WordNet, of all 1,000 classes or some of them.

    Args:
        prompts: ImageNet's.
        whose: see `LabelledImages.prompts`.

    Returns:
        The images under the names of their classes, and the number of each class in ImageNet.

    Raises:
        UserError: no images, another folder, or no timm.
    """
    folders, number = class_folders(path), _numbers_of_wnids()
    stray = [folder for folder in folders if folder not in number]
    if stray:
        raise UserError(
            f"{path}: expected folders named by ImageNet's classes, n01440764 to n15075141; "
            f"got {stray[0]}"
        )
    source = ClassFolder(path, folders)
    classes = [prompts.classes[number[folder]] for folder in folders]
    images = labelled(source, source.labels, classes, prompts.templates, whose)
    return images, tuple((number[folder],) for folder in folders)


def imagenet_prompts() -> Prompts:
    """open_clip's names and sentences.

    Raises:
        UserError: it is not installed.
    """
    try:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
    except ImportError:
        raise UserError(
            "ImageNet: expected open_clip, which has the names of its classes; "
            "pip install open_clip_torch"
        ) from None
    # open_clip's sentences are functions of the name.
    templates = tuple(template(PLACE) for template in OPENAI_IMAGENET_TEMPLATES)
    return Prompts(tuple(IMAGENET_CLASSNAMES), templates)


def _open(path: Path, folders: list[str]) -> LabelledImages:
    if len(folders) != _CLASSES:
        raise UserError(
            f"{path}: expected {_CLASSES:,} folders, one for each class of ImageNet; "
            f"got {len(folders):,}"
        )
    classes, templates = imagenet_prompts()
    source = ClassFolder(path, folders)
    return labelled(source, source.labels, classes, templates, "open_clip")


def _numbers_of_wnids() -> dict[str, int]:
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        raise UserError(
            "ImageNet's shifts: expected timm, which has the classes' WordNet names; "
            "pip install timm"
        ) from None
    return {wnid: number for number, wnid in enumerate(ImageNetInfo().label_names())}
