"""ObjectNet: the 113 of its 313 kinds of things that ImageNet has too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import ClassFolder
from clipfast.eval.datasets.sets import LabelledImages, labelled

_FOLDERS = "folder_to_objectnet_label.json"  # {"alarm_clock": "Alarm clock", …}
_LABELS = "objectnet_to_imagenet_1k.json"  # {"Alarm clock": "analog clock; digital clock", …}
_NAMES = "imagenet_to_label_2012_v2"  # a name a line, in the order of the competition of 2012
_NUMBERS = "pytorch_to_imagenet_2012_id.json"  # {"0": 355, …}: the line of class 0


def open_objectnet(
    path: Path, reference: LabelledImages
) -> tuple[LabelledImages, tuple[tuple[int, ...], ...]]:
    """The images of `images/` by the tables of `mappings/`, as the archive has both.

    The red border of its images, a pixel wide, is left on them.

    Args:
        path: of the archive's folder.
        reference: ImageNet.

    Returns:
        The images under ObjectNet's names, in lower case, and the ImageNet classes of each.

    Raises:
        UserError: a table or all images are missing, or the tables do not fit each other.

    Source: Barbu et al. 2019, "ObjectNet", NeurIPS.
    """
    columns = _columns(path / "mappings")
    labels = {label: folder for folder, label in _read(path / "mappings" / _FOLDERS).items()}
    try:
        folders = [labels[label] for label in columns]
    except KeyError as missing:
        raise _do_not_fit(path / "mappings", missing) from None
    source = ClassFolder(path / "images", folders)
    classes = [label.lower() for label in columns]
    images = labelled(source, source.labels, classes, reference.templates, reference.prompts)
    return images, tuple(columns.values())


def _columns(mappings: Path) -> dict[str, tuple[int, ...]]:
    """ObjectNet's label to classes of ImageNet."""
    class_of_line = {line: int(number) for number, line in _read(mappings / _NUMBERS).items()}
    names = _text(mappings / _NAMES).splitlines()
    try:
        class_of_name = {name.strip(): class_of_line[i] for i, name in enumerate(names)}
        return {
            label: tuple(class_of_name[name] for name in of_imagenet.split("; "))
            for label, of_imagenet in _read(mappings / _LABELS).items()
        }
    except KeyError as missing:
        raise _do_not_fit(mappings, missing) from None


def _read(file: Path) -> dict[str, Any]:
    text = _text(file)
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object; got something else")
    return content


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file; ObjectNet's archive has it beside the folder of its images"
        ) from None


def _do_not_fit(mappings: Path, missing: KeyError) -> UserError:
    return UserError(f"{mappings}: expected tables that fit each other; {missing} is in one alone")
