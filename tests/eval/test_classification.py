"""Figures of a classifier beside scikit-learn's, on its real digits."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from clipfast.eval.classification import scores


@pytest.fixture(scope="module")
def digits():
    """(N, 64) pixels, (64, 10) the classes' means in the first 300, and (N,) labels, float64."""
    data = load_digits()
    pixels = F.normalize(torch.from_numpy(data.data), dim=1)
    labels = torch.from_numpy(data.target.astype(np.int64))
    means = torch.stack([pixels[:300][labels[:300] == c].mean(dim=0) for c in range(10)])
    return pixels, F.normalize(means, dim=1).T, labels


def check_against_scikit_learn(pixels, classifier, labels):
    found, logits = scores(pixels, classifier, labels), (pixels @ classifier).numpy()
    true, predicted, classes = labels.numpy(), logits.argmax(axis=1), range(classifier.shape[1])
    assert found.acc1 == accuracy_score(true, predicted)
    assert found.acc5 == top_k_accuracy_score(true, logits, k=5, labels=classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # predicted classes without an image
        mean = balanced_accuracy_score(true, predicted)
    assert found.mean_per_class_recall == pytest.approx(mean, rel=1e-15)
    each = recall_score(true, predicted, labels=classes, average=None, zero_division=np.nan)
    np.testing.assert_array_equal(found.per_class, each)
    confusion = confusion_matrix(true, predicted, labels=classes)
    np.testing.assert_array_equal(found.confusion, confusion)
    return found


def test_figures_are_scikit_learns(digits):
    found = check_against_scikit_learn(*digits)
    assert 0.8 < found.acc1 < found.acc5 < 1


def test_classes_of_unequal_size_and_without_images_are_counted_as_scikit_learn_does(digits):
    pixels, classifier, labels = digits
    kept = (labels != 3) & ((labels != 8) | (torch.arange(len(labels)) < 40))
    found = check_against_scikit_learn(pixels[kept], classifier, labels[kept])
    assert np.isnan(found.per_class).tolist() == [c == 3 for c in range(10)]
    assert abs(found.mean_per_class_recall - found.acc1) > 1e-4


def test_a_single_image_and_a_single_class_have_figures(digits):
    pixels, classifier, labels = digits
    check_against_scikit_learn(pixels[:1], classifier, labels[:1])
    found = scores(pixels[:4], classifier[:, :1], torch.zeros(4).long())
    assert (found.acc1, found.mean_per_class_recall) == (1, 1)
    assert found.confusion.tolist() == [[4]]


def test_fewer_than_five_classes_have_no_first_five(digits):
    pixels, classifier, labels = digits
    kept = labels < 4
    assert np.isnan(scores(pixels[kept], classifier[:, :4], labels[kept]).acc5)
    kept = labels < 5
    assert scores(pixels[kept], classifier[:, :5], labels[kept]).acc5 == 1


def test_classes_that_look_alike_are_right_by_chance_and_confused_with_the_first():
    labels = torch.arange(10).repeat(3)
    found = scores(torch.ones(30, 4), torch.ones(4, 10), labels)
    assert found.acc1 == pytest.approx(0.1)
    assert found.acc5 == pytest.approx(0.5)
    np.testing.assert_allclose(found.per_class, 0.1)
    assert found.confusion[:, 0].tolist() == [3] * 10
    assert found.confusion.sum() == 30


def test_features_that_are_not_finite_are_wrong_and_taken_for_nothing(digits):
    pixels, classifier, labels = digits
    bad = pixels.clone()
    bad[::2] = float("nan")
    found, rest = (scores(*x) for x in ((bad, classifier, labels), (pixels, classifier, labels)))
    assert found.confusion.sum() == len(labels) // 2
    assert found.acc1 < 0.5 < rest.acc1


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 10], "labels: expected classes from 0 to 9; got 0 to 10"),
        ([-1, 2], "labels: expected classes from 0 to 9; got -1 to 2"),
        ([1], r"labels: expected int64 \(2,\), one class per image; got torch.int64 \(1,\)"),
        ([0.0, 1.0], r"expected int64 \(2,\), one class per image; got torch.float32 \(2,\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(digits, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        scores(digits[0][:2], digits[1], torch.tensor(labels))


def test_no_image_is_named(digits):
    with pytest.raises(ValueError, match="features: expected one image or more; got none"):
        scores(digits[0][:0], digits[1], digits[2][:0])
