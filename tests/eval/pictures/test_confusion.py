"""Confusion: the matrix that is drawn, the pairs that are listed, names that are no formula."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.naive_bayes import GaussianNB

from clipfast.eval.pictures.confusion import grouped, most_confused, row_shares, save_confusion

pytestmark = pytest.mark.filterwarnings("error")

ODD_NAMES = [
    "$x_1$ \\frac{",
    "_under_score_",
    "猫と犬",
    "قطة",
    "two\nlines",
    "name " * 40,
    "%s {}",
    "",
]


def made(classes, images=20):
    """Counts whose rows differ, with a class that has no image."""
    random = np.random.default_rng(classes)
    counts = random.multinomial(images, random.dirichlet(np.full(classes, 0.3), classes))
    counts[classes // 2] = 0
    return counts


def named(classes):
    return [ODD_NAMES[i % len(ODD_NAMES)] for i in range(classes)]


def drawn(figure):
    return figure.axes[0].images[0].get_array()


def test_the_cells_are_scikit_learns_row_shares_on_real_digits(tmp_path):
    digits = load_digits()
    found = GaussianNB().fit(digits.data[::2], digits.target[::2]).predict(digits.data[1::2])
    true = digits.target[1::2]
    names = [f"digit {i}" for i in range(10)]
    figure = save_confusion(tmp_path / "a.png", confusion_matrix(true, found), names, "digits")
    expected = confusion_matrix(true, found, normalize="true")
    np.testing.assert_allclose(drawn(figure), expected, rtol=1e-12)
    axes = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (column, row): f"{100 * expected[row, column]:.1f}" for row, column in np.argwhere(expected)
    }
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("class", "taken for")
    assert figure.get_suptitle() == "digits"


@pytest.mark.parametrize("classes", [2, 30, 31, 1000])
def test_every_number_of_classes_and_every_name_is_drawn_at_full_width(classes, tmp_path):
    counts = made(classes)
    figure = save_confusion(tmp_path / "a.png", counts, named(classes), "a $title_1$ " * 12)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1000
        assert image.height <= 1100
    shares = drawn(figure)
    assert shares.shape[0] <= 100
    if classes <= 100:
        np.testing.assert_array_equal(shares.filled(np.nan), row_shares(counts))
    assert np.isnan(row_shares(counts)[classes // 2]).all()


def test_groups_of_classes_keep_every_image_and_rows_of_one():
    counts = made(1000)
    groups = grouped(counts, 10)
    assert groups.shape == (100, 100)
    np.testing.assert_array_equal(groups, counts.reshape(100, 10, 100, 10).sum((1, 3)))
    np.testing.assert_allclose(row_shares(groups).sum(1), 1)
    ragged = grouped(made(101), 2)
    assert ragged.shape == (51, 51)
    assert ragged.sum() == made(101).sum()


def test_the_most_confused_come_by_share_then_by_images():
    counts = np.diag([10, 90, 0, 60]) + np.array(
        [[0, 10, 0, 0], [0, 0, 0, 10], [0, 0, 0, 0], [20, 20, 20, 0]]
    )
    pairs = [tuple(pair) for pair in most_confused(counts, 3)]
    assert pairs == [(0, 1, 10, 0.5), (3, 0, 20, 1 / 6), (3, 1, 20, 1 / 6)]
    assert most_confused(counts, 100)[-1] == (1, 3, 10, 0.1)
    assert most_confused(np.eye(4, dtype=np.int64), 3) == []


def test_beside_many_classes_the_pairs_are_listed_by_name(tmp_path):
    counts = np.eye(40, dtype=np.int64) * 9
    counts[3, 7], counts[20, 2] = 1, 3
    names = [f"class_{i}" for i in range(40)]
    figure = save_confusion(tmp_path / "a.png", counts, names, "many")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words[0] == "Most confused"
    assert words[1:4] == ["25%", "class_20", "→ class_2  3×"]
    assert words[4:] == ["10%", "class_3", "→ class_7  1×"]
    perfect = save_confusion(tmp_path / "b.png", np.eye(40, dtype=np.int64), names, "many")
    words = [text.get_text() for axes in perfect.axes for text in axes.texts]
    assert words == ["No image is taken for another class"]


def test_names_are_drawn_as_they_stand_in_every_place(tmp_path):
    figure = save_confusion(tmp_path / "a.png", made(8), ODD_NAMES, "$t_1$")
    labels = figure.axes[0].get_yticklabels()
    assert labels[0].get_text() == "$x_1$ \\frac{"
    assert labels[4].get_text() == "two lines"
    assert labels[5].get_text().endswith("…")
    assert not any(label.get_parse_math() for label in labels)
