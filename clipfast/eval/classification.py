"""How often images are classified rightly: over all, by class, and what they are taken for.

N images, D features, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from clipfast_kernels import gathered_similarity
from numpy.typing import NDArray
from torch import Tensor

from clipfast.eval.standing import standing_of

_FIRST = 5  # places of top-5 accuracy


class Scores(NamedTuple):
    """Shares from 0 to 1. Of classes that are equally likely each comes first equally often.

    Attributes:
        acc1: the share of images whose class is the likeliest.
        acc5: or among the five likeliest; NaN for fewer than five classes.
        mean_per_class_recall: the mean of `per_class` over the classes that have images.
        per_class: (C,) acc1 of each class's images; NaN where it has none.
        confusion: (C, C) int64, images by their class (row) and the likeliest one (column), of
            equally likely ones the first. An image whose similarities are all NaN is in no column.
    """

    acc1: float
    acc5: float
    mean_per_class_recall: float
    per_class: NDArray[np.float64]
    confusion: NDArray[np.int64]


def scores(features_ND: Tensor, classifier_DC: Tensor, labels_N: Tensor) -> Scores:
    """Of the classes that features · classifier tells.

    Args:
        features_ND: of unit length for zero-shot classification; one image or more.
        classifier_DC: of the features' dtype and device.
        labels_N: int64, each image's class.

    Raises:
        ValueError: no image, or labels that are not one class per image.

    Memory: a panel of similarities, and the confusion.
    """
    classes = classifier_DC.shape[1]
    _check_labels(labels_N, len(features_ND), classes)
    keys, labels = classifier_DC.T, labels_N.to(features_ND.device)
    standing = standing_of(features_ND, keys, labels)
    hits, of = standing.hits(1), labels.cpu().numpy()
    with np.errstate(invalid="ignore"):  # 0 / 0: a class without images
        per_class = np.bincount(of, hits, classes) / np.bincount(of, minlength=classes)
    return Scores(
        float(hits.mean()),
        standing.recall(_FIRST) if classes >= _FIRST else float("nan"),
        float(np.nanmean(per_class)),
        per_class,
        _confusion(of, _likeliest(features_ND, keys), classes),
    )


def _likeliest(queries: Tensor, keys: Tensor) -> NDArray[np.int64]:
    """(N,) each query's most similar key; −1 where all are NaN."""
    indices = gathered_similarity(queries, keys, topk=1).topk_indices
    assert indices is not None
    found: NDArray[np.int64] = indices[:, 0].cpu().numpy()
    return found


def _confusion(
    labels: NDArray[np.int64], found: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    cells = (labels * classes + found)[found >= 0]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _check_labels(labels_N: Tensor, images: int, classes: int) -> None:
    if images == 0:
        raise ValueError("features: expected one image or more; got none")
    if labels_N.dtype != torch.int64 or labels_N.shape != (images,):
        raise ValueError(
            f"labels: expected int64 ({images},), one class per image; "
            f"got {labels_N.dtype} {tuple(labels_N.shape)}"
        )
    least, most = int(labels_N.min()), int(labels_N.max())
    if least < 0 or most >= classes:
        raise ValueError(f"labels: expected classes from 0 to {classes - 1}; got {least} to {most}")
