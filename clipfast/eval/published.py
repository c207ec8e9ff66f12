"""What others have measured and published, to be read beside our own figures.

A figure is of its own weights, images, class names and sentences; `note` says which where that is
known. None of them says how another model, or ours, would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """Attributes:
    value: from 0 to 1.
    model: or what else was measured.
    source: a paper, a page, or a file at a commit.
    note: what a figure beside it must share with it to be comparable.
    """

    value: float
    model: str
    source: str
    note: str


def published(suite: str, task: str, metric: str) -> tuple[Published, ...]:
    """The figures beside a row, the paper's first; none where none is known.

    Args:
        suite: by CLIP_benchmark's name, without the group: "mnist", "imagenet1k", "flickr30k".
        task: "zero-shot", "linear-probe" or "retrieval".
        metric: "acc1", "mean_per_class_recall", "image_retrieval_recall@5", …
    """
    key = suite, task, metric
    return _OF_THE_PAPER.get(key, ()) + _MEASURED_AGAIN.get(key, ())


_BEST = "ViT-L/14@336px"
_PAPER = "arXiv 2103.00020"


def _paper(percent: float, note: str, model: str = _BEST) -> Published:
    return Published(percent / 100, model, _PAPER, note)


def _zero_shot(percent: float, note: str) -> tuple[Published, ...]:
    return (_paper(percent, note),)


def _probe(percent: float) -> tuple[Published, ...]:
    note = "a logistic regression on ImageNet's training images, by features before the projection"
    return (_paper(percent, note),)


def _recalls(suite: str, direction: str, percents: tuple[float, float, float], note: str) -> dict:
    return {
        (suite, "retrieval", f"{direction}_retrieval_recall@{k}"): (_paper(percent, note),)
        for k, percent in zip((1, 5, 10), percents, strict=True)
    }


_IMAGENET = "80 sentences a class, and the paper's class names"
_OF_200 = f"{_IMAGENET}, among the 200 classes that the set has"
_PREFIXED = 'Karpathy\'s split; "a photo of" before each caption'

_OF_THE_PAPER: dict[tuple[str, str, str], tuple[Published, ...]] = {
    ("imagenet1k", "zero-shot", "acc1"): tuple(
        _paper(percent, _IMAGENET, model)
        for model, percent in (
            (_BEST, 76.2),
            ("ViT-L/14", 75.3),
            ("ViT-B/16", 68.6),
            ("ViT-B/32", 63.2),
            ("RN50x64", 73.6),
            ("RN50x16", 70.5),
            ("RN50x4", 65.8),
            ("RN101", 62.2),
            ("RN50", 59.6),
        )
    ),
    ("imagenetv2", "zero-shot", "acc1"): _zero_shot(70.1, _IMAGENET),
    ("imagenet_sketch", "zero-shot", "acc1"): _zero_shot(60.2, _IMAGENET),
    ("imagenet-a", "zero-shot", "acc1"): _zero_shot(77.2, _OF_200),
    ("imagenet-r", "zero-shot", "acc1"): _zero_shot(88.9, _OF_200),
    ("objectnet", "zero-shot", "acc1"): _zero_shot(
        72.3, "among the 113 classes that ImageNet has too"
    ),
    ("imagenet1k", "linear-probe", "acc1"): _probe(85.4),
    ("imagenetv2", "linear-probe", "acc1"): _probe(75.9),
    ("imagenet_sketch", "linear-probe", "acc1"): _probe(57.4),
    ("imagenet-a", "linear-probe", "acc1"): _probe(75.3),
    ("imagenet-r", "linear-probe", "acc1"): _probe(84.2),
    ("objectnet", "linear-probe", "acc1"): _probe(66.2),
    ("mnist", "zero-shot", "acc1"): (
        _paper(88.4, "the paper's weights and sentences"),
        _paper(92.5, "trained on MNIST", "logistic regression on raw pixels"),
        Published(
            0.9975, "people", "OpenAI 2021, CLIP: connecting text and images", "MNIST's test images"
        ),
    ),
    **_recalls("flickr30k", "text", (88.0, 98.7, 99.4), _PREFIXED),
    **_recalls("flickr30k", "image", (68.7, 90.6, 95.2), _PREFIXED),
    **_recalls("mscoco_captions", "text", (58.4, 81.5, 88.1), _PREFIXED),
    **_recalls("mscoco_captions", "image", (37.8, 62.4, 72.2), _PREFIXED),
}

# OpenAI's released weights of the paper's best model, as open_clip measured them.
_RELEASED = f"{_BEST}, OpenAI's released weights"
_ZERO_SHOT_FILE = "open_clip, docs/openclip_results.csv, commit 0a1cc15"
_RETRIEVAL_FILE = "open_clip, docs/openclip_retrieval_results.csv, commit 05e7db4"
_SENTENCES = "CLIP_benchmark's images, class names and sentences"

_ACC1 = {
    "imagenet1k": 0.7656,
    "imagenetv2": 0.7089,
    "imagenet_sketch": 0.6100,
    "imagenet-a": 0.7748,
    "imagenet-r": 0.8905,
    "objectnet": 0.7183,
    "mnist": 0.7916,
    "cifar10": 0.9493,
    "cifar100": 0.7436,
    "country211": 0.3445,
    "dtd": 0.5559,
    "eurosat": 0.6144,
    "food101": 0.9386,
    "gtsrb": 0.5239,
    "voc2007": 0.7815,
    "pcam": 0.6073,
    "renderedsst2": 0.7057,
    "resisc45": 0.6379,
    "cars": 0.7932,
    "stl10": 0.9943,
    "sun397": 0.6865,
    "svhn": 0.5560,
}
# The file gives the mean over classes of these, as the paper does.
_MEAN_PER_CLASS = {"caltech101": 0.9225, "fgvc_aircraft": 0.3346, "flowers": 0.7852, "pets": 0.9369}
_RECALLS = {
    ("flickr30k", "text"): (0.8770, 0.9850, 0.9940),
    ("flickr30k", "image"): (0.6690, 0.8900, 0.9334),
    ("mscoco_captions", "text"): (0.5794, 0.8120, 0.8792),
    ("mscoco_captions", "image"): (0.3709, 0.6162, 0.7147),
}

_MEASURED_AGAIN: Mapping[tuple[str, str, str], tuple[Published, ...]] = {
    (suite, "zero-shot", metric): (Published(value, _RELEASED, _ZERO_SHOT_FILE, _SENTENCES),)
    for metric, values in (("acc1", _ACC1), ("mean_per_class_recall", _MEAN_PER_CLASS))
    for suite, value in values.items()
} | {
    (suite, "retrieval", f"{direction}_retrieval_recall@{k}"): (
        Published(value, _RELEASED, _RETRIEVAL_FILE, "captions as they are"),
    )
    for (suite, direction), values in _RECALLS.items()
    for k, value in zip((1, 5, 10), values, strict=True)
}
