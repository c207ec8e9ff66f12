"""Neighbours: which images and sentences are shown, in which order, and which are called right."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.neighbors import NearestNeighbors

from clipfast.eval.pictures.neighbours import Neighbour, save_neighbours

pytestmark = pytest.mark.filterwarnings("error")


def test_real_digits_and_their_nearest_images(tmp_path):
    digits = load_digits()
    images = [(digit[..., None].repeat(3, 2) * 15).astype(np.uint8) for digit in digits.images]
    distances, found = (
        NearestNeighbors(n_neighbors=4, metric="cosine")
        .fit(digits.data)
        .kneighbors(digits.data[[0, 5]])
    )
    rows = [
        [
            Neighbour(images[i], 1 - d, bool(digits.target[i] == digits.target[q]))
            for i, d in zip(near[1:], ds[1:], strict=True)
        ]
        for q, near, ds in zip((0, 5), found, distances, strict=True)
    ]
    queries = [images[0], images[5]]
    figure = save_neighbours(tmp_path / "a.png", queries, rows, "digits", ["zero", "five"])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    expected = [queries[0], *(n.shown for n in rows[0]), queries[1], *(n.shown for n in rows[1])]
    for one, other in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    words = [axes.get_xlabel() for axes in figure.axes]
    marks = ["zero", *map(marked, rows[0]), "five", *map(marked, rows[1])]
    assert words == marks
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1000


def marked(neighbour):
    return f"{'✓' if neighbour.right else '✗'} {neighbour.cosine:.2f}"


def test_sentences_stand_below_each_other_nearest_first(tmp_path):
    photos = load_sample_images().images
    sentences = ["a $temple_1$", "花の写真", "a sentence " * 30]
    near = [Neighbour(s, 0.3 - i / 10, i == 1) for i, s in enumerate(sentences)]
    figure = save_neighbours(tmp_path / "a.png", photos, [near, near], "two photographs")
    words = [text.get_text() for text in figure.axes[1].texts]
    assert words[:4] == ["✗ 0.30", "a $temple_1$", "✓ 0.20", "花の写真"]
    assert words[5].endswith("…")
    heights = [text.get_position()[1] for text in figure.axes[1].texts]
    assert heights[::2] == heights[1::2], "a cosine and its sentence are on one line"
    heights = heights[::2]
    low, high = figure.axes[1].get_ylim()
    assert heights == sorted(heights)
    assert high < heights[0] < heights[-1] < low


def test_sentences_that_look_for_images_are_written_whole_or_cut(tmp_path):
    photos = load_sample_images().images
    near = [Neighbour(photo, 0.25) for photo in photos]
    figure = save_neighbours(tmp_path / "a.png", ["a flower", "words " * 90], [near, near], "two")
    assert figure.axes[0].texts[0].get_text() == "a flower"
    assert figure.axes[3].texts[0].get_text().count("\n") == 4
    assert figure.axes[1].get_xlabel() == "0.25", "nobody knows whether it is right"
