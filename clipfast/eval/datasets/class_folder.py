"""Labelled images: a folder for each class, as torchvision's ImageFolder numbers them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from clipfast.data.sources.sample_set import SampleSet
from clipfast.errors import UserError
from clipfast.eval.datasets.file_images import FileImages
from clipfast.eval.datasets.sets import DEFAULT_TEMPLATES, Classification, LabelledImages
from clipfast.eval.prompts.reading import read_classes, read_templates

_CLASSES, _TEMPLATES = "classes.txt", "templates.txt"
_TRAIN, _VALIDATION, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test",)


class ClassFolder(FileImages):
    """The images of a `Source`, folder by folder, each folder's in the order of their paths.

    Args:
        path: holds the folders, in which there may be others; links are followed.
        folders: one for each class, in their order.

    Attributes:
        labels: (N,) int64.

    Raises:
        UserError: there is no image.
    """

    def __init__(self, path: Path, folders: Sequence[str]) -> None:
        files, labels = list[str](), list[int]()
        for label, folder in enumerate(folders):
            of_class = list(_images(path, folder))
            files += of_class
            labels += [label] * len(of_class)
        if not labels:
            raise UserError(
                f"{path}: expected images in the folders of the classes; got none in "
                f"{len(folders)} folders"
            )
        super().__init__(path, files)
        self.labels = np.array(labels, np.int64)


def class_folders(path: Path) -> list[str]:
    """The folders' names, sorted.

    Raises:
        UserError: there is none.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    if not names:
        raise UserError(f"{path}: expected a folder for each class; got none")
    return names


def open_class_folder(path: Path) -> LabelledImages:
    """A user's own classes, named by their folders, or by ``classes.txt`` in the order of these.

    ``templates.txt`` may hold sentences, one a line; without it there is "a photo of a {}."

    Raises:
        UserError: no classes or no images, names that do not fit the folders, or a sentence without
            ``{}``.
    """
    return _open(path, class_folders(path), path)


def open_class_splits(path: Path) -> Classification:
    """A folder of classes; or one of ``train``, ``val`` and ``test``, each with a folder for each
    class, and ``classes.txt`` and ``templates.txt`` beside them.

    Without ``test``, figures are of ``val``. A class may lack images in some of the splits.

    Raises:
        UserError: as `open_class_folder`.
    """
    train, validation, test = splits_of(path)
    if test is None:
        return Classification(path.absolute().name, open_class_folder(path))
    splits = [split for split in (test, train, validation) if split is not None]
    folders = sorted({folder for split in splits for folder in class_folders(split)})
    return Classification(
        path.absolute().name,
        _open(test, folders, path),
        None if train is None else _open(train, folders, path),
        None if validation is None else _open(validation, folders, path),
    )


def splits_of(path: Path) -> tuple[Path | None, Path | None, Path | None]:
    """The folders of training, validation and test images; all None where the folders in `path` are
    others."""
    names = {entry.name for entry in os.scandir(path) if entry.is_dir()} if path.is_dir() else set()
    train, validation, test = (
        next((path / name for name in known if name in names), None)
        for known in (_TRAIN, _VALIDATION, _TEST)
    )
    if not names <= {*_TRAIN, *_VALIDATION, *_TEST} or not (test or validation):
        return None, None, None
    return (train, validation, test) if test else (train, None, validation)


def _open(path: Path, folders: list[str], beside: Path) -> LabelledImages:
    """Args:
    beside: the folder that may have names and sentences.
    """
    names, templates = tuple(folders), DEFAULT_TEMPLATES
    if (beside / _CLASSES).exists():
        names = read_classes(beside / _CLASSES, len(folders))
    if (beside / _TEMPLATES).exists():
        templates = read_templates(beside / _TEMPLATES)
    source = ClassFolder(path, folders)
    return LabelledImages(SampleSet([source]), source.labels, names, templates)


def _images(root: Path, folder: str) -> Iterator[str]:
    """Paths from the root on."""
    for inner, _, names in sorted(os.walk(root / folder, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(IMG_EXTENSIONS):
                yield os.path.relpath(os.path.join(inner, name), root)
