"""The pictures of an evaluation, beside its rows.

N images, C classes, T texts, D features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.images.decode import eval_pixels
from clipfast.data.sources.sample_set import SampleSet
from clipfast.eval.classification import Scores
from clipfast.eval.datasets.sets import LabelledImages
from clipfast.eval.few_shot import FewShot
from clipfast.eval.linear_probe import Sweep
from clipfast.eval.pictures.class_bars import save_class_bars
from clipfast.eval.pictures.confusion import save_confusion
from clipfast.eval.pictures.neighbours import Neighbour, save_neighbours
from clipfast.eval.pictures.probe_curve import save_lambda_curve, save_probe_curve
from clipfast.eval.pictures.robustness_scatter import save_robustness_scatter
from clipfast.eval.results import Picture
from clipfast.eval.robustness.evaluation import RobustnessRow, RobustnessTable

_QUERIES, _NEAREST, _SIDE = 6, 5, 112


class Gallery:
    """Writes PNGs into a folder; each method gives what it wrote.

    Args:
        folder: made when the first comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._few = dict[str, dict[str, tuple[Sequence[FewShot], Mapping[str, float]]]]()
        self._rows = dict[str, dict[RobustnessRow, None]]()

    def classes(
        self,
        what: str,
        scores: Scores,
        names: Sequence[str],
        baseline: Scores | None = None,
    ) -> list[Picture]:
        """What each class is taken for, and how often it is found.

        Args:
            what: the data, the task and the model: "mnist, zero-shot, ViT-B-32 openai".
            baseline: zero-shot's, beside a probe's.
        """
        matrix = self._picture(f"{what}: confusion", "images by their class and the one found")
        save_confusion(self.folder / matrix.file, scores.confusion, names, matrix.title)
        bars = self._picture(f"{what}: accuracy by class", "a bar for each class")
        marks = None if baseline is None else baseline.per_class
        path = self.folder / bars.file
        save_class_bars(path, scores.per_class, names, bars.title, marks, "zero-shot")
        return [matrix, bars]

    def found_classes(
        self,
        what: str,
        images: LabelledImages,
        numbers_N: NDArray[np.int64],
        image_ND: Tensor,
        classifier_DC: Tensor,
    ) -> list[Picture]:
        """A few images and the sentences of the classes that are the most similar to them.

        Args:
            numbers_N: of the images, those that `image_ND` are the features of.
        """
        rows = _spread(len(numbers_N))
        labels = images.labels[numbers_N[rows]].tolist()
        sentence = images.templates[0].replace
        neighbours = [
            [
                Neighbour(sentence("{}", images.classes[c]), cosine, c == label)
                for c, cosine in found
            ]
            for found, label in zip(_nearest(image_ND[rows], classifier_DC.T), labels, strict=True)
        ]
        queries = [_shown(images.samples, number) for number in numbers_N[rows]]
        own = [images.classes[label] for label in labels]
        picture = self._picture(f"{what}: nearest classes", "images and the classes found for them")
        save_neighbours(self.folder / picture.file, queries, neighbours, picture.title, own)
        return [picture]

    def found_pairs(
        self,
        what: str,
        samples: SampleSet,
        numbers_N: NDArray[np.int64],
        image_ND: Tensor,
        texts: Sequence[str],
        text_TD: Tensor,
        image_of_text_T: Tensor,
    ) -> list[Picture]:
        """A few images and their most similar texts; a few texts and their most similar images."""
        of_text = image_of_text_T.tolist()
        rows = _spread(len(numbers_N))
        sentences = [
            [Neighbour(texts[t], cosine, of_text[t] == row) for t, cosine in found]
            for found, row in zip(_nearest(image_ND[rows], text_TD), rows, strict=True)
        ]
        first = self._picture(f"{what}: nearest texts", "images and the texts found for them")
        queries = [_shown(samples, number) for number in numbers_N[rows]]
        save_neighbours(self.folder / first.file, queries, sentences, first.title)
        asked = _spread(len(texts))
        images = [
            [
                Neighbour(_shown(samples, numbers_N[n]), cosine, of_text[t] == n)
                for n, cosine in found
            ]
            for found, t in zip(_nearest(text_TD[asked], image_ND), asked, strict=True)
        ]
        second = self._picture(f"{what}: nearest images", "texts and the images found for them")
        save_neighbours(self.folder / second.file, [texts[t] for t in asked], images, second.title)
        return [first, second]

    def strengths(self, what: str, swept: Sweep) -> list[Picture]:
        """Validation accuracy over the probe's λ."""
        picture = self._picture(f"{what}: the choice of λ", "validation accuracy over λ")
        save_lambda_curve(self.folder / picture.file, swept.tried, swept.probe.lam, picture.title)
        return [picture]

    def shots(
        self,
        suite: str,
        label: str,
        few: Sequence[FewShot],
        accuracies: Mapping[str, float],
    ) -> list[Picture]:
        """Accuracy over labelled images per class: this model's, and of those drawn before.

        Args:
            accuracies: of "zero-shot" and "linear-probe", where they are known.
        """
        of_suite = self._few.setdefault(suite, {})
        of_suite[label] = few, accuracies
        picture = self._picture(
            f"{suite}: accuracy over labelled images per class", "a curve for each model"
        )
        points = {
            name: [(f.shots, f.mean, min(f.accuracies), max(f.accuracies)) for f in found]
            for name, (found, _) in of_suite.items()
        }
        zero_shot, probe = (
            {name: known[kind] for name, (_, known) in of_suite.items() if kind in known}
            for kind in ("zero-shot", "linear-probe")
        )
        save_probe_curve(self.folder / picture.file, points, zero_shot, probe, picture.title)
        return [picture]

    def robustness(self, table: RobustnessTable) -> list[Picture]:
        """Accuracy under the shifts over that on the reference: this model's, and of those drawn
        before."""
        before = self._rows.setdefault(table.reference, {})
        before |= dict.fromkeys(table.rows)
        picture = self._picture(
            f"{table.reference}: robustness", "average accuracy under shifts over the reference's"
        )
        save_robustness_scatter(self.folder / picture.file, replace(table, rows=tuple(before)))
        return [picture]

    def _picture(self, title: str, what: str) -> Picture:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9.]+", "-", title).strip("-")
        return Picture(f"{name}.png", title, f"{title}: {what}")


def _spread(count: int) -> list[int]:
    """A few places from all over."""
    return sorted({count * i // _QUERIES for i in range(_QUERIES)} & set(range(count)))


def _nearest(queries_ND: Tensor, keys_KD: Tensor) -> list[list[tuple[int, float]]]:
    """Of each query the most similar keys and their cosines."""
    values, indices = (queries_ND @ keys_KD.T).topk(min(_NEAREST, len(keys_KD)), dim=1)
    return [
        list(zip(row, cosines, strict=True))
        for row, cosines in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def _shown(samples: SampleSet, number: int) -> NDArray[np.uint8]:
    """(H, W, 3), as the model is shown it, but for the size."""
    pixels: torch.Tensor = eval_pixels(samples.read(int(number)).image, _SIDE)
    return pixels.permute(1, 2, 0).numpy()
