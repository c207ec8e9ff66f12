"""Effective robustness: the line is scikit-learn's in logits; what cannot tell one is refused."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from clipfast.errors import UserError
from clipfast.eval.robustness.effective import Baseline

REFERENCE = [0.42, 0.61, 0.7, 0.78, 0.93]
SHIFT = [0.2, 0.31, 0.44, 0.5, 0.74]


def logit(p):
    return math.log(p / (1 - p))


def test_the_line_is_the_least_squares_line_of_the_logits():
    x, y = (np.array([logit(p) for p in values]) for values in (REFERENCE, SHIFT))
    theirs = LinearRegression().fit(x[:, None], y)
    baseline = Baseline.fit(REFERENCE, SHIFT)
    assert baseline.slope == pytest.approx(theirs.coef_[0], abs=1e-12)
    assert baseline.intercept == pytest.approx(theirs.intercept_, abs=1e-12)
    expected = 1 / (1 + math.exp(-theirs.predict([[logit(0.85)]])[0]))
    assert baseline.expected(0.85) == pytest.approx(expected, abs=1e-12)
    assert baseline.effective(0.85, 0.7) == pytest.approx(0.7 - expected, abs=1e-12)
    assert baseline.points == tuple(zip(REFERENCE, SHIFT, strict=True))


def test_models_on_the_line_have_no_effective_robustness():
    baseline = Baseline.fit([0.3, 0.9], [0.2, 0.6])
    assert baseline.effective(0.3, 0.2) == pytest.approx(0, abs=1e-12)
    assert baseline.effective(0.9, 0.6) == pytest.approx(0, abs=1e-12)


def test_no_and_all_images_right_count_as_half_an_image_more_and_less():
    clipped = Baseline.fit([0.0, 1.0], [0.0, 1.0], reference_samples=50, shift_samples=200)
    same = Baseline.fit([0.01, 0.99], [0.0025, 0.9975])
    assert clipped.slope == pytest.approx(same.slope, abs=1e-12)
    assert clipped.intercept == pytest.approx(same.intercept, abs=1e-12)
    assert clipped.points == ((0.0, 0.0), (1.0, 1.0))


def test_a_perfect_and_a_hopeless_model_are_expected_at_the_lines_ends():
    rising = Baseline.fit([0.3, 0.9], [0.2, 0.6])
    assert (rising.expected(0.0), rising.expected(1.0)) == (0.0, 1.0)
    flat = Baseline.fit([0.3, 0.9], [0.5, 0.5])
    assert (flat.expected(0.0), flat.expected(1.0)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("reference", "shift", "sentence"),
    [
        ([], [], "baseline: expected at least 2 models of different accuracy .*; got 0"),
        ([0.5], [0.4], "got 1"),
        ([0.5, 0.5, 0.5], [0.4, 0.3, 0.2], "got 1"),
        ([0.5, 1.0], [0.4, 0.3], "inside of 0 and 1, or the number .*, on the reference; got 1"),
        ([0.5, 0.6], [0.4, 0.0], "inside of 0 and 1, .* on the shift; got 0"),
        ([0.5, float("nan")], [0.4, 0.3], "got nan"),
    ],
)
def test_what_tells_no_line_is_refused(reference, shift, sentence):
    with pytest.raises(UserError, match=sentence):
        Baseline.fit(reference, shift)


def test_accuracies_that_are_not_numbers_are_refused_with_a_number_of_images_too():
    with pytest.raises(UserError, match="got nan"):
        Baseline.fit([0.5, float("nan")], [0.4, 0.3], reference_samples=9, shift_samples=9)
    with pytest.raises(UserError, match=r"got 1\.5"):
        Baseline.fit([0.5, 1.5], [0.4, 0.3], reference_samples=9, shift_samples=9)


def test_models_that_were_not_all_measured_under_the_shift_are_refused():
    with pytest.raises(ValueError, match="as many accuracies as reference, 2; got 1"):
        Baseline.fit([0.5, 0.6], [0.4])
