"""Parts of a labelled set, drawn class by class, the same in every run.

N images, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clipfast.errors import UserError

_ONE_IN = 5


def hold_out(labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """A fifth of each class for validation, rounded down; its others for training.

    Args:
        labels_N: int64.

    Returns:
        The numbers of those to train on, and of those held out, both ascending.

    Raises:
        UserError: no class has five images.
    """
    held_N = places_in_class(labels_N, seed=0) % _ONE_IN == _ONE_IN - 1
    if not held_N.any():
        raise UserError(
            f"validation: expected a class of {_ONE_IN} training images, to hold one out; got "
            f"{int(torch.bincount(labels_N).max())} in the largest"
        )
    return (~held_N).nonzero()[:, 0], held_N.nonzero()[:, 0]


def of_each_class(labels_N: Tensor, classes: int, shots: int, seed: int) -> Tensor:
    """Images drawn without replacement; those of fewer shots are among those of more.

    Args:
        labels_N: int64.
        classes: C.
        shots: of each class.
        seed: of the draw.

    Returns:
        (C · shots,) int64, their numbers, ascending.

    Raises:
        UserError: a class has fewer.
    """
    counts_C = torch.bincount(labels_N, minlength=classes)
    fewest = int(counts_C.argmin())
    if counts_C[fewest] < shots:
        raise UserError(
            f"few-shot: expected at least {shots} training images of each class; got "
            f"{int(counts_C[fewest])} of class {fewest}"
        )
    return (places_in_class(labels_N, seed) < shots).nonzero()[:, 0]


def places_in_class(labels_N: Tensor, seed: int) -> Tensor:
    """(N,) int64, where each image comes in a random order of its class's, from 0 on."""
    labels = labels_N.cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    places = np.empty_like(order)
    places[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(places).to(labels_N.device)
