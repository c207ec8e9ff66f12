"""Zero-shot accuracy of a model on the demo's held-out writing.

N images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from clipfast.data.images.decode import eval_pixels
from clipfast.data.images.normalize import Normalize
from clipfast.demo.dataset import DigitShards, Label
from clipfast.demo.digits import BACKGROUNDS, INKS, sentences
from clipfast.eval.zero_shot import sentence_classifier
from clipfast.models.clip import CLIP

_BATCH = 240


class Question(NamedTuple):
    """What images are sorted by: each class is described by all sentences that fit it.

    Attributes:
        name: key of its accuracy.
        split: which images are asked about.
        classes: class to its sentences.
        answer: the class that a label belongs to.
    """

    name: str
    split: str
    classes: dict[object, list[str]]
    answer: Callable[[Label], object]


def questions() -> list[Question]:
    return [
        Question(
            "digit", "test", {d: sentences(digit=d) for d in range(10)}, lambda label: label.digit
        ),
        Question("ink", "test", {i: sentences(ink=i) for i in INKS}, lambda label: label.ink),
        Question(
            "background",
            "test",
            {b: sentences(background=b) for b in BACKGROUNDS},
            lambda label: label.background,
        ),
        Question(
            "unseen_combination",
            "unseen",
            {(d, i): sentences(digit=d, ink=i) for d in range(10) for i in INKS},
            lambda label: (label.digit, label.ink),
        ),
    ]


def zero_shot_accuracies(model: CLIP, shards: DigitShards) -> dict[str, float]:
    """Each question's share of images whose most similar class is the right one."""
    features = {split: image_features(model, shards, split) for split in ("test", "unseen")}
    accuracies = {}
    for question in track(questions(), "zero-shot testing"):
        classifier = sentence_classifier(model, list(question.classes.values()))
        chosen = (features[question.split] @ classifier).argmax(dim=1)
        order = list(question.classes)
        right = [order.index(question.answer(label)) for label in shards.labels(question.split)]
        accuracies[question.name] = (chosen == torch.tensor(right)).double().mean().item()
    return accuracies


def best_sentences(
    model: CLIP, features_ND: Tensor, candidates: list[str], k: int
) -> list[list[tuple[str, float]]]:
    """Per image its k most similar sentences, with their cosines."""
    classifier = sentence_classifier(model, [[sentence] for sentence in candidates])
    values, indices = (features_ND @ classifier).topk(k, dim=1)
    return [
        [(candidates[i], value) for i, value in zip(row, row_values, strict=True)]
        for row, row_values in zip(indices.tolist(), values.tolist(), strict=True)
    ]


@torch.no_grad()
def image_features(model: CLIP, shards: DigitShards, split: str) -> Tensor:
    """(N, D) unit features of a split's images, on the CPU."""
    samples, size = shards.samples(split), model.image_size
    normalize = Normalize(device=model.logit_scale.device)
    features = []
    for start in range(0, len(samples), _BATCH):
        rows = range(start, min(start + _BATCH, len(samples)))
        images = torch.stack([eval_pixels(samples.read(row).image, size) for row in rows])
        features.append(model.encode_image(normalize(images), normalize=True).cpu())
    return torch.cat(features)
