"""Few-shot linear probes: k training images of each class, drawn with several seeds.

N images, D features, C classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from clipfast.eval.linear_probe import sweep
from clipfast.eval.splits import hold_out, of_each_class

SHOTS = (1, 2, 4, 8, 16)


class FewShot(NamedTuple):
    """Probes of the same number of images.

    Attributes:
        shots: images of each class.
        accuracies: on the test images, one for each seed.
        lams: the λ of each.
    """

    shots: int
    accuracies: tuple[float, ...]
    lams: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """The standard deviation over seeds (n − 1); 0 of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def few_shot(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = range(3),
    *,
    validation_features: Tensor | None = None,
    validation_labels: Tensor | None = None,
    per_class: bool = False,
    tell: Callable[[FewShot], None] | None = None,
) -> list[FewShot]:
    """Accuracy of probes of k images per class, k in `shots`.

    Each probe's λ is chosen by `sweep` on the validation images of the whole set, as the paper's
    were (openai/CLIP issue 128: "not truly few-shot learning in this sense"), and it is fitted to
    its k images per class alone. A seed's images of fewer shots are among its images of more.

    Args:
        train_features, train_labels: what is drawn from, as `fit` takes them.
        test_features, test_labels: what figures are of.
        classes: C.
        shots: k, each at least 1.
        seeds: of the draws.
        validation_features, validation_labels: None holds a fifth of each class out of training;
            nothing is drawn from it.
        per_class: accuracy is the mean of the classes' accuracies.
        tell: called with each k's probes.

    Returns:
        In the order of `shots`.

    Raises:
        UserError: a class has fewer than k images left, or none has enough to hold one out.

    Source: Radford et al. 2021, arXiv 2103.00020, figure 6.
    """
    if validation_features is None or validation_labels is None:
        kept, held = hold_out(train_labels)
        validation_features, validation_labels = train_features[held], train_labels[held]
        train_features, train_labels = train_features[kept], train_labels[kept]
    of_each_class(train_labels, classes, max(shots), seed=0)  # before hours of work

    def probe(k: int, seed: int) -> tuple[float, float]:
        drawn = of_each_class(train_labels, classes, k, seed)
        found = sweep(
            train_features[drawn],
            train_labels[drawn],
            validation_features,
            validation_labels,
            classes,
            per_class=per_class,
            refit=False,
        ).probe
        return found.accuracy(test_features, test_labels, per_class=per_class), found.lam

    rows = []
    for k in shots:
        accuracies, lams = zip(*(probe(k, seed) for seed in seeds), strict=True)
        rows.append(FewShot(k, accuracies, lams))
        if tell is not None:
            tell(rows[-1])
    return rows
