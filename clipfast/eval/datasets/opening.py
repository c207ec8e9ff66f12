"""From the name of a suite, or a path, to its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from clipfast.data.sources.storage import is_remote
from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import open_class_splits
from clipfast.eval.datasets.fetching import not_found
from clipfast.eval.datasets.idx import open_idx
from clipfast.eval.datasets.imagenet import (
    imagenet_prompts,
    open_imagenet_splits,
    open_imagenet_v2,
    open_wnid_folder,
)
from clipfast.eval.datasets.pairs import KARPATHY, open_karpathy, open_pairs
from clipfast.eval.datasets.sets import Classification, LabelledImages, Retrieval
from clipfast.eval.datasets.test_shards import is_test_shards, open_test_shards, suite_of
from clipfast.eval.datasets.torchvision_sets import SETS, open_torchvision
from clipfast.eval.prompts.reading import read_classes, read_templates

# From the folder that was named, and whether to download and to open training images.
_Open = Callable[[Path, bool, bool], Classification | Retrieval]

# What a folder of pairs has.
_PAIRS = ("metadata.csv", "metadata.jsonl", "dataset_dict.json", "state.json")
_SETS = (".parquet", ".tar")
_IMAGES, _CAPTIONS = (".jpg", ".jpeg", ".png", ".webp"), (".txt", ".json")
_TABLES = (".tar", ".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz", ".zip", ".zst")


@dataclass(frozen=True)
class KnownSuite:
    """Attributes:
    title: the set's own name.
    at: where it is looked for.
    classes: how many; 0 for pairs.
    splits: what is trained and tested on.
    opening: gives the data.
    per_class: the paper gives the mean over classes.
    """

    title: str
    at: str
    classes: int
    splits: str
    opening: _Open
    per_class: bool = False


def open_suite(
    name: str,
    root: Path | None = None,
    *,
    download: bool = False,
    train: bool = True,
    classes: Path | None = None,
    templates: Path | None = None,
) -> Classification | Retrieval:
    """The data of a suite by name; or a path or URL: of test shards as CLIP_benchmark publishes
    them, a folder of classes or of ``train``, ``val`` and ``test`` with these, a JSON file of
    Karpathy's, or pairs as training takes them.

    Args:
        name: of `SUITES`, or the path.
        root: where a set is looked for by name; test shards of it count too. None is here.
        download: fetches what is missing, where torchvision can.
        train: False leaves training and validation images out.
        classes: a file of the classes' names, one a line, in place of those that the set has.
        templates: a file of sentences, one a line.

    Raises:
        UserError: no such suite, data that are missing or damaged, or files that do not fit.
    """
    if name in SUITES:
        found = _open_known(name, root or Path(), download=download, train=train)
    else:
        found = _open_path(name)
    if isinstance(found, Retrieval):
        for flag, file in (("--classes", classes), ("--templates", templates)):
            if file is not None:
                raise UserError(f"{flag}: expected a suite of classes; got the pairs of {name}")
        return found
    if not train:
        found = replace(found, train=None, validation=None)
    return _with_prompts(found, classes, templates)


def _open_known(
    name: str, root: Path, *, download: bool, train: bool
) -> Classification | Retrieval:
    suite = SUITES[name]
    for inside in ("", name, f"wds_{name}", f"wds_vtab-{name}"):
        if is_test_shards(str(root / inside)):
            return open_test_shards(name, str(root / inside), per_class=suite.per_class)
    found = suite.opening(root, download, train)
    if isinstance(found, Retrieval):
        return found
    return replace(found, per_class=suite.per_class)


def _open_path(name: str) -> Classification | Retrieval:
    path = Path(name)
    table = name.lower().endswith(_TABLES)
    if (is_remote(name) and not table) or (path.is_dir() and is_test_shards(name)):
        suite = suite_of(name)
        per_class = suite in SUITES and SUITES[suite].per_class
        return open_test_shards(suite, name, per_class=per_class)
    if path.is_dir():
        return open_pairs(name) if _has_pairs(path) else open_class_splits(path)
    if path.suffix == ".json":
        names = [suite for suite, file in KARPATHY.items() if file == path.name]
        return open_karpathy(names[0] if names else path.stem, path)
    if not table:
        raise UserError(
            f"--suite {name}: expected one of {', '.join(SUITES)}, or the path of a folder, a "
            "table or shards; got neither"
        )
    return open_pairs(name)


def _has_pairs(folder: Path) -> bool:
    """Whether it, or its first subfolder, has captions beside images, or tables or shards of
    them."""
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return any(_are_pairs(inside) for inside in (folder, *subfolders[:1]))


def _are_pairs(folder: Path) -> bool:
    files = [Path(entry.name) for entry in folder.iterdir() if entry.is_file()]
    images, captions = (
        {file.stem for file in files if file.suffix.lower() in endings}
        for endings in (_IMAGES, _CAPTIONS)
    )
    return bool(images & captions) or any(f.name in _PAIRS or f.suffix in _SETS for f in files)


def _with_prompts(
    found: Classification, classes: Path | None, templates: Path | None
) -> Classification:
    names = None if classes is None else read_classes(classes, len(found.test.classes))
    sentences = None if templates is None else read_templates(templates)
    if names is None and sentences is None:
        return found

    def changed(images: LabelledImages | None) -> LabelledImages | None:
        if images is None:
            return None
        return images._replace(
            classes=names or images.classes,
            templates=sentences or images.templates,
            prompts=str(templates or classes),
        )

    test = changed(found.test)
    assert test is not None
    return replace(
        found, test=test, train=changed(found.train), validation=changed(found.validation)
    )


def _idx(name: str, root: Path, download: bool, train: bool) -> Classification:
    return open_idx(name, root, download=download, train=train)


def _torchvision(name: str, root: Path, download: bool, train: bool) -> Classification:
    return open_torchvision(name, root, download=download, train=train)


def _imagenet(root: Path, download: bool, train: bool) -> Classification:
    return open_imagenet_splits(root)


def _v2(root: Path, download: bool, train: bool) -> Classification:
    return Classification("imagenetv2", open_imagenet_v2(_inside(root, ("imagenetv2",))))


def _wnids(name: str, folders: tuple[str, ...], root: Path, *_: bool) -> Classification:
    return Classification(name, open_wnid_folder(_inside(root, folders), imagenet_prompts())[0])


def _karpathy(name: str, root: Path, *_: bool) -> Retrieval:
    folder = _inside(root, (name,))
    if not root.suffix and not (folder / KARPATHY[name]).is_file():
        page = "https://cs.stanford.edu/people/karpathy/deepimagesent/"
        raise not_found(root, f"{name} in {KARPATHY[name]}", page, fetched=False)
    return open_karpathy(name, folder)


def _inside(root: Path, folders: tuple[str, ...]) -> Path:
    """The folder of one of these names in the root, or the root."""
    return next((root / folder for folder in folders if (root / folder).is_dir()), root)


def _of_torchvision(
    name: str, title: str, classes: int, splits: str, *, per_class: bool = False
) -> KnownSuite:
    opening = partial(_torchvision, name)
    return KnownSuite(title, SETS[name].at, classes, splits, opening, per_class)


_OWN = "the set's own"
_OWN_WITH_VALIDATION = "the set's own, with validation images"
_FOLDERS_OF_WNIDS = "test images alone, in folders by WordNet"
_KARPATHYS = "the test images of Karpathy's split"

# By CLIP_benchmark's names.
SUITES: dict[str, KnownSuite] = {
    "mnist": KnownSuite(
        "MNIST", "MNIST/raw, or its four IDX files", 10, _OWN, partial(_idx, "mnist")
    ),
    "fashion_mnist": KnownSuite(
        "Fashion-MNIST",
        "FashionMNIST/raw, or its four IDX files",
        10,
        _OWN,
        partial(_idx, "fashion_mnist"),
    ),
    **{
        name: _of_torchvision(name, title, classes, splits, per_class=per_class)
        for name, title, classes, splits, per_class in (
            ("cifar10", "CIFAR10", 10, _OWN, False),
            ("cifar100", "CIFAR100", 100, _OWN, False),
            ("stl10", "STL10", 10, _OWN, False),
            ("svhn", "SVHN", 10, _OWN, False),
            ("food101", "Food101", 101, _OWN, False),
            ("flowers", "Oxford Flowers 102", 102, _OWN_WITH_VALIDATION, True),
            ("dtd", "Describable Textures", 47, "the first of ten, with validation", False),
            ("pets", "Oxford-IIIT Pets", 37, _OWN, True),
            ("fgvc_aircraft", "FGVC Aircraft, variants", 100, _OWN_WITH_VALIDATION, True),
            ("cars", "Stanford Cars", 196, _OWN, False),
            ("caltech101", "Caltech101", 101, "30 of each class to train on, drawn", True),
            ("sun397", "SUN397", 397, "the first partition, or all to test on", False),
            ("country211", "Country211", 211, _OWN_WITH_VALIDATION, False),
            ("eurosat", "EuroSAT", 10, "a fifth of each class to test on, drawn", False),
            ("gtsrb", "German traffic signs", 43, _OWN, False),
            ("pcam", "PatchCamelyon", 2, _OWN_WITH_VALIDATION, False),
            ("fer2013", "FER2013", 7, "both test parts", False),
            ("renderedsst2", "Rendered SST2", 2, _OWN_WITH_VALIDATION, False),
            ("clevr_count_all", "CLEVR, counting", 8, "its validation images to test on", False),
        )
    },
    "imagenet1k": KnownSuite(
        "ImageNet",
        "val and train, or the 1,000 folders of val",
        1000,
        "its validation images to test on",
        _imagenet,
    ),
    "imagenetv2": KnownSuite(
        "ImageNetV2, matched frequency", "imagenetv2", 1000, "test images alone", _v2
    ),
    **{
        name: KnownSuite(
            title, folders[0], classes, _FOLDERS_OF_WNIDS, partial(_wnids, name, folders)
        )
        for name, title, folders, classes in (
            ("imagenet_sketch", "ImageNet-Sketch", ("imagenet_sketch", "imagenet-sketch"), 1000),
            ("imagenet-a", "ImageNet-A", ("imagenet-a",), 200),
            ("imagenet-r", "ImageNet-R", ("imagenet-r",), 200),
        )
    },
    **{
        name: KnownSuite(title, KARPATHY[name], 0, _KARPATHYS, partial(_karpathy, name))
        for name, title in (
            ("flickr30k", "Flickr30k"),
            ("flickr8k", "Flickr8k"),
            ("mscoco_captions", "COCO captions"),
        )
    },
}
