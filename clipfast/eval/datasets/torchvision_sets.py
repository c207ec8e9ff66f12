"""Sets that torchvision knows, by its classes, which find the files, check them and read labels.

Of images in files the decoder gets the files; those in arrays become PNG.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets

from clipfast.data.sources.samples import Source
from clipfast.errors import UserError
from clipfast.eval.datasets.array_images import ArrayImages
from clipfast.eval.datasets.fetching import fetch, not_found
from clipfast.eval.datasets.file_images import FileImages
from clipfast.eval.datasets.sets import Classification, LabelledImages, labelled
from clipfast.eval.prompts.reading import prompts_of
from clipfast.eval.splits import hold_out, places_in_class

_CALTECHS_TRAINING = 30  # images of each class, as the paper has 3,060 of 102
_CLEVRS_FEWEST = 3  # things in an image


class _Part(NamedTuple):
    """Attributes:
    classes: as the data have them; none where they do not.
    """

    source: Source
    labels: Sequence[int] | NDArray[np.integer]
    classes: Sequence[str] = ()


# From torchvision's root, the name of the split, and whether to download.
_Read = Callable[[str, str, bool], _Part]


@dataclass(frozen=True)
class TorchvisionSet:
    """Attributes:
    at: what shows that it is there, under torchvision's root.
    page: where it is published.
    read: a split of it.
    test, train, validation: the splits' names; None where there is none.
    fetched: torchvision can download it.
    """

    at: str
    page: str
    read: _Read
    test: str = "test"
    train: str = "train"
    validation: str | None = None
    fetched: bool = True


def open_torchvision(
    name: str, root: Path, *, download: bool = False, train: bool = True
) -> Classification:
    """A set of `SETS`.

    Args:
        name: its key there.
        root: torchvision's, or the set's own folder, or one above that is called as the set.
        download: fetches what is missing.
        train: False leaves training and validation images out.

    Raises:
        UserError: the test images are missing, or files damaged. Training images that are missing
            are left out.
    """
    kind = SETS[name]
    base = _base(name, root, kind.at)
    if base is None:
        if not download or not kind.fetched:
            raise not_found(root, f"{name} in {kind.at}", kind.page, fetched=kind.fetched)
        base = root
    test = _open(name, base, kind.test, download)
    if test is None:
        raise UserError(
            f"{base / kind.at}: expected the whole of {name}; got a part of it, or other files; "
            f"it is at {kind.page}"
        )
    training = _open(name, base, kind.train, download) if train else None
    validation = None
    if training is not None and kind.validation is not None:
        validation = _open(name, base, kind.validation, download)
    for part in (training, validation):
        if part is not None and part.classes != test.classes:
            raise UserError(
                f"{base / kind.at}: expected the same classes in all splits of {name}; got "
                f"{len(test.classes)} for testing and {len(part.classes)} for training"
            )
    return Classification(name, test, training, validation)


def _open(name: str, base: Path, split: str, download: bool) -> LabelledImages | None:
    """None where the split is missing."""
    kind = SETS[name]
    read = partial(kind.read, str(base), split, download)
    try:
        part = fetch(name, read) if download else read()
    except UserError:
        raise
    except (RuntimeError, FileNotFoundError):  # torchvision's, for what is not found
        return None
    except Exception as error:  # it lets through whatever its parsers stumble over
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{base / kind.at}: expected {name}, whole; got: {what}") from None
    classes, templates = prompts_of(name, part.classes)
    return labelled(part.source, part.labels, classes, templates, "clipfast")


def _base(name: str, root: Path, at: str) -> Path | None:
    """What torchvision calls the root of the set that is in a folder, or that the folder is."""
    root = root.absolute()
    # The first may be called as the set's own folder.
    for base in (root / name, root, *list(root.parents)[: len(Path(at).parts)]):
        inside = base in (root / name, root) or root.is_relative_to(base / Path(at).parts[0])
        if inside and (base / at).exists():
            return base
    return None


def _path(path: str | Path) -> str:
    """Given to torchvision as what loads an image, it gives the file itself."""
    return str(path)


def _files(root: str, paths: Sequence[str]) -> FileImages:
    return FileImages(Path(root), [os.path.relpath(path, root) for path in paths])


def _of_files(kind: Callable[..., Any], root: str, split: str, download: bool) -> _Part:
    found = kind(root, split=split, download=download, loader=_path)
    paths, labels = zip(*(found[i] for i in range(len(found))), strict=True)
    return _Part(_files(root, paths), labels, getattr(found, "classes", ()))


def _cifar(kind: Callable[..., Any], root: str, split: str, download: bool) -> _Part:
    found = kind(root, train=split == "train", download=download)
    source = ArrayImages(os.path.join(root, found.base_folder), found.data)
    return _Part(source, found.targets, found.classes)


def _planes(kind: Callable[..., Any], at: str, root: str, split: str, download: bool) -> _Part:
    """Of arrays whose colours come first."""
    found = kind(root, split=split, download=download)
    images = np.transpose(found.data, (0, 2, 3, 1))
    return _Part(ArrayImages(os.path.join(root, at), images), found.labels)


def _pets(root: str, split: str, download: bool) -> _Part:
    found = datasets.OxfordIIITPet(root, split=split, download=download)
    return _Part(_files(root, [str(p) for p in found._images]), found._labels, found.classes)


def _gtsrb(root: str, split: str, download: bool) -> _Part:
    found = datasets.GTSRB(root, split=split, download=download)
    paths, labels = zip(*found._samples, strict=True)
    return _Part(_files(root, paths), labels)


def _caltech(root: str, split: str, download: bool) -> _Part:
    """30 images of each class to train on, drawn at random: the paper's are not published."""
    found = datasets.Caltech101(root, download=download)
    folder = Path("caltech101", "101_ObjectCategories")
    files = [
        str(folder / found.categories[label] / f"image_{number:04d}.jpg")
        for label, number in zip(found.y, found.index, strict=True)
    ]
    trains = places_in_class(torch.tensor(found.y), seed=0) < _CALTECHS_TRAINING
    return _chosen(root, files, found.y, trains if split == "train" else ~trains, found.categories)


def _eurosat(root: str, split: str, download: bool) -> _Part:
    """A fifth of each class to test on, drawn at random: the paper's are not published."""
    found = datasets.EuroSAT(root, download=download, loader=_path)
    files = [os.path.relpath(path, root) for path, _ in found.samples]
    train, test = hold_out(torch.tensor(found.targets))
    chosen = torch.zeros(len(files), dtype=torch.bool)
    chosen[train if split == "train" else test] = True
    return _chosen(root, files, found.targets, chosen, found.classes)


def _chosen(
    root: str, files: Sequence[str], labels: Sequence[int], chosen: Any, classes: Sequence[str]
) -> _Part:
    numbers = np.flatnonzero(chosen).tolist()
    source = FileImages(Path(root), [files[n] for n in numbers])
    return _Part(source, np.asarray(labels)[numbers], classes)


def _sun(root: str, split: str, download: bool) -> _Part:
    """By the set's first partition where its files are there, else all images to test on."""
    found = datasets.SUN397(root, download=download, loader=_path)
    folder = Path(root) / "SUN397"
    file = {"train": "Training_01.txt", "test": "Testing_01.txt"}[split]
    lists = [path for path in (folder / file, folder / "Partitions" / file) if path.is_file()]
    if lists:
        inside = [line.strip().lstrip("/") for line in lists[0].read_text().split("\n")]
        inside = [path for path in inside if path]
    elif split == "train":
        raise FileNotFoundError(file)
    else:
        # torchvision has them in the order of the file system.
        inside = sorted(os.path.relpath(found[i][0], folder) for i in range(len(found)))
    labels = [found.class_to_idx["/".join(Path(path).parts[1:-1])] for path in inside]
    return _Part(FileImages(folder, inside), labels, found.classes)


def _clevr(root: str, split: str, download: bool) -> _Part:
    part = _of_files(datasets.CLEVRClassification, root, split, download)
    return part._replace(labels=np.asarray(part.labels) - _CLEVRS_FEWEST)


def _fer(root: str, split: str, download: bool) -> _Part:
    images, labels = zip(*datasets.FER2013(root, split=split)._samples, strict=True)
    if None in labels:
        raise UserError(
            f"{root}/fer2013: expected fer2013.csv or icml_face_data.csv, which label the test "
            "images; got test.csv, which does not"
        )
    return _Part(ArrayImages(f"{root}/fer2013", torch.stack(images).numpy()), labels)


def _pcam(root: str, split: str, download: bool) -> _Part:
    try:
        import h5py
    except ImportError:
        raise UserError("pcam: expected h5py, which reads its files; pip install h5py") from None
    datasets.PCAM(root, split=split, download=download)
    files = [os.path.join(root, "pcam", names[0]) for names in datasets.PCAM._FILES[split].values()]
    images, labels = h5py.File(files[0])["x"], h5py.File(files[1])["y"][:].reshape(-1)
    # All of its pixels would take minutes.
    seen = f"{os.path.getsize(files[0])} {images.shape} {zlib.crc32(labels.tobytes())}"
    return _Part(ArrayImages(files[0], images, f"{zlib.crc32(images[0])} {seen}"), labels)


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_OPENAI = "https://openaipublic.azureedge.net/clip/data"
_KAGGLE = "https://www.kaggle.com"

# By CLIP_benchmark's names.
SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet(
        "cifar-10-batches-py",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        partial(_cifar, datasets.CIFAR10),
    ),
    "cifar100": TorchvisionSet(
        "cifar-100-python",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        partial(_cifar, datasets.CIFAR100),
    ),
    "stl10": TorchvisionSet(
        "stl10_binary",
        "https://cs.stanford.edu/~acoates/stl10/",
        partial(_planes, datasets.STL10, "stl10_binary"),
    ),
    "svhn": TorchvisionSet(
        "test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/",
        partial(_planes, datasets.SVHN, ""),
    ),
    "food101": TorchvisionSet(
        "food-101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        partial(_of_files, datasets.Food101),
    ),
    "flowers": TorchvisionSet(
        "flowers-102",
        f"{_OXFORD}/flowers/102/",
        partial(_of_files, datasets.Flowers102),
        validation="val",
    ),
    "dtd": TorchvisionSet(
        "dtd/dtd", f"{_OXFORD}/dtd/", partial(_of_files, datasets.DTD), validation="val"
    ),
    "pets": TorchvisionSet("oxford-iiit-pet", f"{_OXFORD}/pets/", _pets, train="trainval"),
    "fgvc_aircraft": TorchvisionSet(
        "fgvc-aircraft-2013b",
        f"{_OXFORD}/fgvc-aircraft/",
        partial(_of_files, datasets.FGVCAircraft),
        validation="val",
    ),
    "cars": TorchvisionSet(
        "stanford_cars",
        f"{_KAGGLE}/datasets/jessicali9530/stanford-cars-dataset",
        partial(_of_files, datasets.StanfordCars),
        fetched=False,
    ),
    "caltech101": TorchvisionSet(
        "caltech101/101_ObjectCategories",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        _caltech,
    ),
    "sun397": TorchvisionSet("SUN397", "https://vision.princeton.edu/projects/2010/SUN/", _sun),
    "country211": TorchvisionSet(
        "country211",
        f"{_OPENAI}/country211.tgz",
        partial(_of_files, datasets.Country211),
        validation="valid",
    ),
    "eurosat": TorchvisionSet("eurosat/2750", "https://github.com/phelber/EuroSAT", _eurosat),
    "gtsrb": TorchvisionSet("gtsrb", "https://benchmark.ini.rub.de", _gtsrb),
    "pcam": TorchvisionSet("pcam", "https://github.com/basveeling/pcam", _pcam, validation="val"),
    "fer2013": TorchvisionSet(
        "fer2013",
        f"{_KAGGLE}/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        _fer,
        fetched=False,
    ),
    "renderedsst2": TorchvisionSet(
        "rendered-sst2",
        f"{_OPENAI}/rendered-sst2.tgz",
        partial(_of_files, datasets.RenderedSST2),
        validation="val",
    ),
    "clevr_count_all": TorchvisionSet(
        "clevr/CLEVR_v1.0", "https://cs.stanford.edu/people/jcjohns/clevr/", _clevr, test="val"
    ),
}
