"""scikit-learn's digits, written as the archives that torchvision reads hold their images.

What a writer's set checks by MD5 sums, which only the real files have, `without_sums` lets through.
"""

import json
import pickle
from functools import cache

import numpy as np
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import datasets

CLASSES = 10
NAMES = [f"digit_{n}" for n in range(CLASSES)]
IMAGES = 80
_SPLITS = {"train": range(30), "val": range(10, 30), "valid": range(10, 30), "test": range(60, 80)}


@cache
def digits():
    found = load_digits()
    return (found.images * 15.9).astype(np.uint8), found.target


def coloured(number, side):
    """(side, side, 3) uint8."""
    grey = np.asarray(Image.fromarray(digits()[0][number]).resize((side, side)))
    return np.stack([grey, 255 - grey, grey // 2], axis=2)


def label(number):
    return int(digits()[1][number])


def put(path, number, side=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coloured(number, side)).save(path, quality=92)


def without_sums(monkeypatch):
    for kind in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        for parts in ("train_list", "test_list"):
            names = [[name, None] for name, _ in getattr(kind, parts)]
            monkeypatch.setattr(kind, parts, names)
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})
    sets = {split: [url, name, None] for split, (url, name, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", sets)
    monkeypatch.setattr(
        datasets.Flowers102,
        "_file_dict",
        {part: (name, None) for part, (name, _) in datasets.Flowers102._file_dict.items()},
    )
    sums = {part: (name, None) for part, (name, _) in datasets.FER2013._RESOURCES.items()}
    monkeypatch.setattr(datasets.FER2013, "_RESOURCES", sums)


def cifar10(root):
    batches = {f"data_batch_{n + 1}": range(6 * n, 6 * n + 6) for n in range(5)}
    folder = _cifar(
        root / "cifar-10-batches-py", batches | {"test_batch": _SPLITS["test"]}, "labels"
    )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))


def cifar100(root):
    parts = {"train": _SPLITS["train"], "test": _SPLITS["test"]}
    folder = _cifar(root / "cifar-100-python", parts, "fine_labels")
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES}))


def _cifar(folder, parts, key):
    folder.mkdir(parents=True)
    for name, numbers in parts.items():
        images = np.stack([coloured(n, 32).transpose(2, 0, 1).reshape(-1) for n in numbers])
        labels = [label(n) for n in numbers]
        (folder / name).write_bytes(pickle.dumps({"data": images, key: labels}))
    return folder


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        # Its pixels go column by column.
        images = [coloured(n, 96).transpose(2, 1, 0) for n in _SPLITS[split]]
        np.stack(images).tofile(folder / f"{split}_X.bin")
        labels = np.array([label(n) + 1 for n in _SPLITS[split]], np.uint8)
        labels.tofile(folder / f"{split}_y.bin")
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("\n".join(NAMES))


def svhn(root):
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = np.stack([coloured(n, 32) for n in _SPLITS[split]], axis=3)
        labels = [[label(n) or 10] for n in _SPLITS[split]]  # its nought is 10
        savemat(root / f"{split}_32x32.mat", {"X": images, "y": np.array(labels, np.uint8)})


def food101(root):
    for split in ("train", "test"):
        found = {name: [] for name in NAMES}
        for n in _SPLITS[split]:
            found[NAMES[label(n)]].append(f"{NAMES[label(n)]}/{n}")
            put(root / "food-101" / "images" / f"{NAMES[label(n)]}/{n}.jpg", n)
        (root / "food-101" / "meta").mkdir(exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(found))


def flowers(root):
    folder = root / "flowers-102"
    for n in range(IMAGES):
        put(folder / "jpg" / f"image_{n + 1:05d}.jpg", n)
    savemat(folder / "imagelabels.mat", {"labels": [label(n) + 1 for n in range(IMAGES)]})
    names = {"trnid": "train", "valid": "val", "tstid": "test"}
    savemat(folder / "setid.mat", {k: [n + 1 for n in _SPLITS[s]] for k, s in names.items()})


def dtd(root):
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [f"{NAMES[label(n)]}/{n}.jpg" for n in _SPLITS[split]]
        for n, name in zip(_SPLITS[split], names, strict=True):
            put(folder / "images" / name, n)
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names))


def pets(root):
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, numbers in (("trainval", range(45)), ("test", _SPLITS["test"])):
        names = [f"{'American_shorthair' if label(n) else 'pug'}_{n}" for n in numbers]
        for n, name in zip(numbers, names, strict=True):
            put(folder / "images" / f"{name}.jpg", n)
        lines = [f"{name} {2 if 'pug' in name else 1} 1 1" for name in names]
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines))


def fgvc_aircraft(root):
    folder = root / "fgvc-aircraft-2013b" / "data"
    for n in range(IMAGES):
        put(folder / "images" / f"{n:07d}.jpg", n)
    (folder / "variants.txt").write_text("\n".join(f"Boeing {name}" for name in NAMES))
    for split in ("train", "val", "test"):
        lines = [f"{n:07d} Boeing {NAMES[label(n)]}" for n in _SPLITS[split]]
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines))


def cars(root):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array([f"Digit Zero {name} 2012" for name in NAMES], object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for n in _SPLITS[split]:
            put(folder / f"cars_{split}" / f"{n:05d}.jpg", n)
            rows.append((f"{n:05d}.jpg", label(n) + 1))
        annotations = np.array(rows, [("fname", object), ("class", np.uint8)])
        savemat(folder / file, {"annotations": annotations})


def caltech101(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    for name, numbers in (("Faces", range(40)), ("yin_yang", range(40, 75))):
        for i, n in enumerate(numbers):
            put(folder / name / f"image_{i + 1:04d}.jpg", n)
    put(folder / "BACKGROUND_Google" / "image_0001.jpg", 0)


def sun397(root):
    folder = root / "SUN397"
    names = ["/a/abbey", "/a/apartment_building/outdoor"]
    for n in range(30):
        put(folder / names[label(n) % 2][1:] / f"sun_{n:04d}.jpg", n)
    (folder / "ClassName.txt").write_text("\n".join(names) + "\n")


def country211(root):
    for split in ("train", "valid", "test"):
        for n in _SPLITS[split]:
            put(root / "country211" / split / ("GB" if label(n) else "AD") / f"{n}.jpg", n)


def eurosat(root):
    for n in range(IMAGES):
        name = "SeaLake" if label(n) < 5 else "AnnualCrop"
        put(root / "eurosat" / "2750" / name / f"{name}_{n}.jpg", n)


def gtsrb(root):
    folder = root / "gtsrb" / "GTSRB"
    for n in _SPLITS["train"]:
        put(folder / "Training" / f"{label(n):05d}" / f"{n}.ppm", n)
    lines = ["Filename;Width;Height;ClassId"]
    for n in _SPLITS["test"]:
        put(folder / "Final_Test" / "Images" / f"{n:05d}.ppm", n)
        lines.append(f"{n:05d}.ppm;16;16;{label(n)}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(lines))


def fer2013(root):
    (root / "fer2013").mkdir(parents=True)
    lines = ["emotion,pixels,Usage"]
    for usage, numbers in (
        ("Training", range(30)),
        ("PublicTest", range(60, 65)),
        ("PrivateTest", range(65, 80)),
    ):
        for n in numbers:
            pixels = " ".join(map(str, coloured(n, 48)[:, :, 0].reshape(-1)))
            lines.append(f"{label(n) % 7},{pixels},{usage}")
    (root / "fer2013" / "fer2013.csv").write_text("\n".join(lines))


def renderedsst2(root):
    for split in ("train", "valid", "test"):
        for n in _SPLITS[split]:
            name = "positive" if label(n) % 2 else "negative"
            put(root / "rendered-sst2" / split / name / f"{n}.png", n)


def clevr_count_all(root):
    folder = root / "clevr" / "CLEVR_v1.0"
    (folder / "scenes").mkdir(parents=True)
    for split in ("train", "val"):
        scenes = []
        for n in _SPLITS[split]:
            put(folder / "images" / split / f"CLEVR_{split}_{n:06d}.png", n)
            things = [{}] * (3 + label(n) % 8)
            scenes.append({"image_filename": f"CLEVR_{split}_{n:06d}.png", "objects": things})
        (folder / "scenes" / f"CLEVR_{split}_scenes.json").write_text(
            json.dumps({"scenes": scenes})
        )
