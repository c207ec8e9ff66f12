"""A linear probe beside scikit-learn's logistic regression, as openai/CLIP's README fits it.

The case of made features has an image tower's properties that matter here: correlated features of
unequal size whose means are not 0.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, worst
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Subject
from torch import Tensor

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

from clipfast.eval.linear_probe import Probe, fit, sweep

LAM = 1 / 0.316  # of openai/CLIP's README
LARGEST = "10000x512, 100 classes"
HELD = {"digits": 597, "4000x256, 50 classes": 1000, LARGEST: 2000}  # images to test


def made(images: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images,), generator=generator)
    centres = 0.3 * torch.randn(classes, width, generator=generator)
    spread = torch.randn(images, width, generator=generator)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    features = (centres[labels] + spread) @ mix * 3 / width**0.5
    return features + torch.randn(width, generator=generator), labels


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    return torch.from_numpy(values).float() / 16, torch.from_numpy(labels)


def images_of(case: str) -> tuple[Tensor, Tensor]:
    if case == "digits":
        return digits()
    return made(5000, 256, 50) if case != LARGEST else made(12_000, 512, 100)


def theirs(features: Tensor, labels: Tensor, lam: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations
        model = LogisticRegression(C=1 / lam, max_iter=1000)
        return model.fit(features.numpy(), labels.numpy())


class Judged:
    """Fits of a case's images, and how right they are: the least loss wins.

    Of the largest case scikit-learn's minimum takes minutes, and only its accuracy is compared.
    """

    def __init__(self, case: str, features: Tensor, labels: Tensor) -> None:
        held = HELD[case]
        self.train, self.test = (features[held:], labels[held:]), slice(0, held)
        self.features, self.labels, self.case = features, labels, case
        self.ours, self.stopped = fit_ours(*self.train), fit_theirs(*self.train)
        self.peer = as_probe(self.stopped)

    def accuracy(self, probe: Probe) -> float:
        return probe.accuracy(self.features[self.test], self.labels[self.test])

    def our_answer(self) -> Answer:
        least = loss(self.peer, *self.train)
        above = max(0.0, loss(self.ours, *self.train) / least - 1)
        apart = abs(self.accuracy(self.ours) - self.accuracy(self.peer))
        found = [
            Answer(above, 1e-6, "share of the loss above scikit-learn's"),
            Answer(apart, 0.02, "accuracies' difference"),
        ]
        if self.case != LARGEST:
            features = self.features[self.test]
            exact = as_probe(to_the_minimum(*self.train)).predict(features).argmax(1)
            other = (self.ours.predict(features).argmax(1) != exact).double().mean().item()
            found.append(Answer(other, 0.002, "share of other predictions than at the minimum"))
        return worst(found)

    def their_answer(self) -> Answer:
        """It stops short of the minimum by default: that is what people get."""
        apart = abs(self.accuracy(self.ours) - self.accuracy(self.peer))
        return Answer(apart, 0.02, "accuracies' difference")

    def figures(self) -> dict[str, float]:
        return {
            "accuracy": self.accuracy(self.ours),
            "scikit-learn's accuracy": self.accuracy(self.peer),
            "iterations": self.ours.iterations,
            "scikit-learn's iterations": int(self.stopped.n_iter_[0]),
            "scikit-learn's loss over ours - 1": loss(self.peer, *self.train)
            / loss(self.ours, *self.train)
            - 1,
        }


def as_probe(model: LogisticRegression) -> Probe:
    return Probe(*(torch.from_numpy(x).double() for x in (model.coef_, model.intercept_)), LAM)


def fit_ours(features: Tensor, labels: Tensor) -> Probe:
    return fit(features, labels, int(labels.max()) + 1, LAM)


def fit_theirs(features: Tensor, labels: Tensor) -> LogisticRegression:
    return theirs(features, labels, LAM)


def to_the_minimum(features: Tensor, labels: Tensor) -> LogisticRegression:
    """About as near to it as ours: in float64, and until the gradient is that small."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / LAM, max_iter=20_000, tol=1e-6)
    return model.fit(features.double().numpy(), labels.numpy())


def loss(probe: Probe, features: Tensor, labels: Tensor) -> float:
    of_images = F.cross_entropy(probe.predict(features), labels, reduction="sum")
    return (of_images + LAM / 2 * probe.weight_CD.square().sum()).item()


@pytest.mark.parametrize(
    "which",
    [
        case("digits", id="digits", tier=FIRST, work=1.0),
        case("4000x256, 50 classes", id="4000x256, 50 classes", tier=MORE, work=20.0),
        case(LARGEST, id=LARGEST, tier=LARGE, work=200.0),
    ],
)
def test_linear_probe(contest, which):
    """Beside scikit-learn's defaults, which stop short of the minimum, and its way there."""
    judged = Judged(which, *images_of(which))

    def minimum() -> Entrant:
        return Entrant(lambda: to_the_minimum(*judged.train), judged.their_answer)

    contenders = [
        Contender(OURS, lambda: Entrant(lambda: fit_ours(*judged.train), judged.our_answer)),
        Contender(
            "scikit-learn",
            lambda: Entrant(lambda: fit_theirs(*judged.train), judged.their_answer),
            peers.scikit_learn,
        ),
    ]
    if which != LARGEST:
        contenders.append(Contender("scikit-learn to the minimum", minimum, peers.scikit_learn))
    contest.hold(
        Subject("linear_probe", dtype="float64"),
        contenders,
        rounds=3,
        figures=lambda samples: judged.figures(),
    )


@pytest.mark.parametrize("which", [case("digits", id="digits", tier=LARGE)])
def test_sweep(contest, which):
    """Beside scikit-learn's fits of the same strengths, and one more of both parts."""
    features, labels = images_of(which)
    train, held = (features[:900], labels[:900]), (features[900:1200], labels[900:1200])
    test = features[1200:], labels[1200:]
    found = sweep(*train, *held, 10)
    lams = [lam for lam, _ in found.tried]

    def peer() -> LogisticRegression:
        fits = [theirs(*train, lam) for lam in lams]
        scores = [model.score(held[0].numpy(), held[1].numpy()) for model in fits]
        best = max(zip(scores, lams, strict=True))[1]
        return theirs(features[:1200], labels[:1200], best)

    accuracies = found.probe.accuracy(*test), peer().score(test[0].numpy(), test[1].numpy())
    answer = Answer(abs(accuracies[0] - accuracies[1]), 0.02, "accuracies' difference")
    contest.hold(
        Subject("sweep", dtype="float64"),
        [
            Contender(OURS, lambda: Entrant(lambda: sweep(*train, *held, 10), lambda: answer)),
            Contender("scikit-learn", lambda: Entrant(peer, lambda: answer), peers.scikit_learn),
        ],
        rounds=3,
        figures=lambda samples: dict(
            zip(("accuracy", "scikit-learn's accuracy"), accuracies, strict=True)
        ),
    )
