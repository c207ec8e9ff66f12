"""Corruptions on real photographs and real handwriting: each does what it is called, the same each
time, and more of it at a higher severity."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from clipfast.demo.digits import render_split
from clipfast.eval.robustness.corruptions import KINDS, SEVERITIES, as_jpeg, corrupt

PHOTOS = [
    np.array(Image.fromarray(photo).resize((320, 224))) for photo in load_sample_images().images
]
DIGITS = [pair.image for pair in render_split("test", 40, 28, seed=0)]


def random():
    return np.random.default_rng([0, 1])


def distance(a, b):
    return np.sqrt(np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_severity_is_further_from_a_photograph(kind):
    for photo in PHOTOS:
        under = [corrupt(photo, kind, severity, random()) for severity in SEVERITIES]
        distances = [0, *(distance(photo, other) for other in under)]
        assert (np.diff(distances) > 0).all(), distances
        assert distances[1] > 5, "the least severity shows"
        assert {(other.shape, other.dtype) for other in under} == {(photo.shape, photo.dtype)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_severity_is_further_from_digits_of_28_pixels(kind):
    distances = [
        np.mean([distance(digit, corrupt(digit, kind, severity, random())) for digit in DIGITS])
        for severity in SEVERITIES
    ]
    assert (np.diff([0, *distances]) > 0).all(), distances
    assert distances[0] > 1, "the least severity shows"
    assert distances[4] > 10, "the most severe is severe"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_random_numbers_give_the_same_pixels_and_the_image_stays(kind):
    image = PHOTOS[0].copy()
    first, second = (corrupt(image, kind, 3, random()) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(image, PHOTOS[0])


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "rotation"])
def test_other_random_numbers_give_other_pixels(kind):
    images = [corrupt(PHOTOS[0], kind, 3, np.random.default_rng(n)) for n in range(8)]
    assert len({image.tobytes() for image in images}) == (2 if kind == "rotation" else 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (31, 2, 3)])
def test_images_of_a_pixel_and_strips_are_corrupted_too(kind, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert corrupt(image, kind, 5, random()).shape == shape


def test_gaussian_noise_has_the_deviation_of_the_table():
    grey = np.full((224, 224, 3), 128, np.uint8)
    for severity, sigma in zip((1, 2, 3), (0.08, 0.12, 0.18), strict=True):  # rarely cut off
        noise = corrupt(grey, "gaussian_noise", severity, random()) / 255 - 128 / 255
        assert noise.std() == pytest.approx(sigma, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=0.002)


def test_shot_noise_varies_as_the_photons_of_the_table():
    for value in (64, 128):
        grey = np.full((224, 224, 3), value, np.uint8)
        for severity, photons in zip((1, 2), (60, 25), strict=True):
            shots = corrupt(grey, "shot_noise", severity, random()) / 255
            assert shots.mean() == pytest.approx(value / 255, abs=0.002)
            assert shots.var() == pytest.approx(value / 255 / photons, rel=0.05)


def test_blur_is_pillows_and_as_wide_in_proportion_on_an_image_half_as_large():
    image = PHOTOS[1]
    pillows = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3)))
    ours = corrupt(image, "gaussian_blur", 3, random())
    assert distance(ours, pillows) < 1
    edge = np.zeros((112, 112, 3), np.uint8)
    edge[:, 56:] = 255
    slope = np.diff(corrupt(edge, "gaussian_blur", 5, random())[50, :, 0].astype(float) / 255)
    # The derivative of a blurred step is the blur: σ = hypot(6 · 112 / 224, 0.4).
    places = np.arange(len(slope)) - 55
    assert np.sqrt((slope * places**2).sum()) == pytest.approx(np.hypot(3, 0.4), rel=0.02)


def test_light_and_contrast_keep_what_they_should():
    image = PHOTOS[0]
    lighter = corrupt(image, "brightness", 2, random()).astype(int)
    dark = image < 200
    assert np.abs(lighter[dark] - image[dark] - 51).max() <= 1
    flatter = corrupt(image, "contrast", 1, random()).astype(float)
    assert flatter.mean((0, 1)) == pytest.approx(image.mean((0, 1)), abs=0.5)
    assert flatter.std((0, 1)) == pytest.approx(0.4 * image.std((0, 1)), abs=0.5)


def test_pixelated_images_have_as_many_blocks_as_the_table_leaves_pixels():
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    blocks = corrupt(image, "pixelate", 5, random())
    assert np.array_equal(blocks, blocks[::4, ::4].repeat(4, 0).repeat(4, 1))
    assert not np.array_equal(blocks[:, 0], blocks[:, 4])


def test_jpeg_is_the_file_of_the_tables_quality():
    buffer = io.BytesIO()
    Image.fromarray(PHOTOS[0]).save(buffer, "JPEG", quality=10)
    assert as_jpeg(PHOTOS[0], 4) == buffer.getvalue()
    with Image.open(buffer) as file:
        assert np.array_equal(corrupt(PHOTOS[0], "jpeg", 4, random()), np.array(file))


def test_rotation_turns_by_the_tables_degrees_to_either_side_and_leaves_no_black_corners():
    line = np.full((101, 101, 3), 255, np.uint8)
    line[49:52] = 0
    angles = set()
    for seed in range(8):
        turned = corrupt(line, "rotation", 5, np.random.default_rng(seed))
        y, x = np.nonzero(turned[20:81, 20:81, 0] < 128)
        angles.add(round(np.degrees(np.arctan(np.polyfit(x, y, 1)[0]))))
        assert turned[0].min() == turned[-1].min() == 255
    assert angles == {-30, 30}


@pytest.mark.parametrize(
    ("image", "kind", "severity", "sentence"),
    [
        (PHOTOS[0], "fog", 1, "corruption: expected one of gaussian_noise, .*; got 'fog'"),
        (PHOTOS[0], "jpeg", 0, "severity: expected 1 to 5; got 0"),
        (PHOTOS[0], "jpeg", 6, "severity: expected 1 to 5; got 6"),
        (PHOTOS[0][..., 0], "jpeg", 1, r"image: expected uint8 \(H, W, 3\); got uint8 \(224, 320"),
        (PHOTOS[0] / 255, "jpeg", 1, "expected uint8 .*; got float64"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(image, kind, severity, sentence):
    with pytest.raises(ValueError, match=sentence):
        corrupt(image, kind, severity, random())
