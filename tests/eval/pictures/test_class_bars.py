"""Bars: their lengths, their order, and which classes are shown where there are many."""

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.pictures.class_bars import save_class_bars

pytestmark = pytest.mark.filterwarnings("error")


def lengths(axes):
    return [bar.get_width() for bar in axes.patches]


def names_of(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_bars_are_the_accuracies_from_best_to_worst_and_empty_classes_are_counted(tmp_path):
    per_class = np.array([0.2, np.nan, 0.9, 0.5])
    figure = save_class_bars(tmp_path / "a.png", per_class, ["a", "b", "c", "d"], "four")
    (axes,) = figure.axes
    assert lengths(axes) == [0.9, 0.5, 0.2]
    assert names_of(axes) == ["c", "d", "a"]
    assert [text.get_text() for text in axes.texts] == ["90.0%", "50.0%", "20.0%"]
    top, bottom = axes.get_ylim()[::-1]
    assert top < bottom, "the best is at the top"
    words = figure.get_supxlabel()
    assert "the mean, 53.3%" in words
    assert "without images: 1" in words


def test_a_baseline_is_marked_on_each_bar_in_the_bars_order(tmp_path):
    per_class, baseline = np.array([0.2, 0.9, 0.5]), np.array([0.1, 0.6, 0.7])
    figure = save_class_bars(
        tmp_path / "a.png", per_class, ["a", "b", "c"], "three", baseline, "zero-shot"
    )
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "|"]
    for mark in marks:
        assert list(mark.get_xdata()) == [0.6, 0.7, 0.1]
        assert list(mark.get_ydata()) == [0, 1, 2]
    assert marks
    assert "orange: zero-shot" in figure.get_supxlabel()


@pytest.mark.parametrize("classes", [1, 40, 41, 1000])
def test_of_many_classes_the_best_and_the_worst_are_shown(classes, tmp_path):
    per_class = np.random.default_rng(0).permutation(classes) / classes
    names = [f"$n_{i}$ 犬" for i in range(classes)]
    figure = save_class_bars(tmp_path / "a.png", per_class, names, "many")
    ordered = sorted(per_class, reverse=True)
    if classes <= 40:
        assert lengths(figure.axes[0]) == ordered
    else:
        assert lengths(figure.axes[0]) == ordered[:20]
        assert lengths(figure.axes[1]) == ordered[-20:]
        assert names_of(figure.axes[1])[-1] == f"$n_{per_class.argmin()}$ 犬"
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1000
        assert image.height <= 1250


def test_a_class_that_is_never_found_keeps_its_place(tmp_path):
    figure = save_class_bars(tmp_path / "a.png", np.array([0.0, 0.0]), ["a", "b"], "none")
    assert lengths(figure.axes[0]) == [0.0, 0.0]
    assert names_of(figure.axes[0]) == ["a", "b"]
