"""Few-shot probes against scikit-learn, on the images that are drawn."""

import statistics
import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from clipfast.errors import UserError
from clipfast.eval.few_shot import FewShot, few_shot
from clipfast.eval.splits import hold_out, of_each_class


@pytest.fixture(scope="module")
def parts():
    values, labels = load_digits(return_X_y=True)
    features, labels = torch.from_numpy(values).float() / 16, torch.from_numpy(labels)
    return features[:600], labels[:600], features[600:1000], labels[600:1000]


@pytest.fixture(scope="module")
def rows(parts):
    return few_shot(*parts, 10, shots=(1, 4), seeds=(0, 3))


def test_accuracies_are_scikit_learns_on_the_drawn_images_alone(parts, rows):
    features, labels, test, of = parts
    kept, _ = hold_out(labels)
    features, labels = features[kept], labels[kept]
    for row in rows:
        for seed, accuracy, lam in zip((0, 3), row.accuracies, row.lams, strict=True):
            drawn = of_each_class(labels, 10, row.shots, seed)
            peer = LogisticRegression(C=1 / lam, solver="newton-cholesky", max_iter=200, tol=1e-9)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peer.fit(features[drawn].double(), labels[drawn])
            assert accuracy == pytest.approx(peer.score(test.double(), of), abs=1e-9)


def test_the_strength_is_the_best_on_images_that_are_held_out(parts, rows):
    features, labels, _, _ = parts
    kept, held = hold_out(labels)
    drawn = kept[of_each_class(labels[kept], 10, 4, seed=3)]
    lam = rows[1].lams[1]

    def score(strength):
        peer = LogisticRegression(C=1 / strength, solver="newton-cholesky", max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.fit(features[drawn].double(), labels[drawn])
        return peer.score(features[held].double(), labels[held])

    assert all(score(lam) >= score(other) for other in (1e4, 1e2, 1.0, 1e-2))


def test_mean_and_spread_are_over_seeds(rows):
    for row in rows:
        assert row.mean == pytest.approx(statistics.mean(row.accuracies))
        assert row.spread == pytest.approx(torch.tensor(row.accuracies).double().std().item())
    assert FewShot(1, (0.5,)).spread == 0
    assert rows[1].mean > rows[0].mean


def test_the_same_seeds_give_the_same_figures(parts, rows):
    assert few_shot(*parts, 10, shots=(1,), seeds=(0, 3)) == rows[:1]


def test_a_validation_set_of_its_own_leaves_all_training_images_to_be_drawn(parts):
    features, labels, test, of = parts
    all_of_them = features[:30], labels[:30]  # 3 or so of each class
    told = []
    options = {"validation_features": features[30:], "validation_labels": labels[30:]}
    rows = few_shot(*all_of_them, test, of, 10, shots=(2,), seeds=(0,), tell=told.append, **options)
    assert told == rows
    with pytest.raises(UserError, match="a class of 5 training images|at least 2 training images"):
        few_shot(*all_of_them, test, of, 10, shots=(2,), seeds=(0,))


def test_a_class_of_too_few_images_is_named_before_any_probe_is_fitted(parts):
    told = []
    with pytest.raises(UserError, match="at least 500 training images of each class; got"):
        few_shot(*parts, 10, shots=(1, 500), seeds=(0,), tell=told.append)
    assert not told
