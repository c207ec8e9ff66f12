"""A corrupted set: the set's labels and places, the same bytes at every reading, and a fingerprint
of its own."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.native import NativeDecoder
from clipfast.data.in_order import InOrder
from clipfast.data.loader import Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sources.samples import UnusableError
from clipfast.demo.digits import render_split
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.robustness.corrupted import corrupted
from clipfast.eval.robustness.corruptions import KINDS, corrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs, digits of 28 pixels, and images in colours of other kinds."""
    root = tmp_path_factory.mktemp("set")
    (root / "photo").mkdir()
    (root / "digit").mkdir()
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    china.save(root / "photo" / "china.jpg", quality=95)
    flower.save(root / "photo" / "flower.png")
    flower.convert("L").save(root / "photo" / "grey.png")
    flower.convert("P").save(root / "photo" / "palette.png")
    flower.convert("CMYK").save(root / "photo" / "cmyk.jpg")
    for pair in render_split("test", 6, 28, seed=0):
        Image.fromarray(pair.image).save(root / "digit" / f"{pair.writing}.png")
    return root


@pytest.fixture
def images(folder):
    return open_class_folder(folder)


def pixels(sample):
    with Image.open(io.BytesIO(sample.image)) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_classes_and_places_are_the_sets(images, kind):
    under = corrupted(images, kind, 3)
    assert under.labels is images.labels
    assert (under.classes, under.templates) == (images.classes, images.templates)
    assert len(under.samples) == len(images.samples)
    for number in range(len(images.samples)):
        sample = under.samples.read(number)
        assert sample.place == images.samples.place(number) == under.samples.place(number)
        expected = b"\xff\xd8\xff" if kind == "jpeg" else b"\x89PNG"
        assert sample.image.startswith(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_image_is_corrupted_as_it_is_by_its_number(images, kind):
    under = corrupted(images, kind, 4, seed=7)
    for number in np.flatnonzero(images.labels == 0):
        image = pixels(images.samples.read(number))
        expected = corrupt(image, kind, 4, np.random.default_rng([7, number]))
        assert np.array_equal(pixels(under.samples.read(number)), expected)


def test_a_large_image_is_shrunk_to_imagenet_cs_side_beforehand(images):
    number = next(
        n for n in range(len(images.labels)) if images.samples.place(n).key.endswith("china.jpg")
    )
    with Image.open(io.BytesIO(images.samples.read(number).image)) as image:
        small = np.array(image.resize((int(224 * 640 / 427), 224), Image.Resampling.BICUBIC))
    under = corrupted(images, "contrast", 2)
    expected = corrupt(small, "contrast", 2, np.random.default_rng(0))
    assert np.array_equal(pixels(under.samples.read(number)), expected)
    larger = corrupted(images, "contrast", 2, side=336)
    assert pixels(larger.samples.read(number)).shape == (336, int(336 * 640 / 427), 3)


def test_an_image_whose_shorter_side_is_small_keeps_its_size(tmp_path):
    (tmp_path / "wide").mkdir()
    wide = Image.fromarray(load_sample_images().images[0][:180])
    wide.save(tmp_path / "wide" / "a.png")
    under = corrupted(open_class_folder(tmp_path), "contrast", 2)
    expected = corrupt(np.array(wide), "contrast", 2, np.random.default_rng(0))
    assert np.array_equal(pixels(under.samples.read(0)), expected)


def test_threads_and_order_change_nothing(images):
    under = corrupted(images, "gaussian_noise", 5)
    numbers = list(range(len(under.samples))) * 4
    alone = {
        number: corrupted(images, "gaussian_noise", 5).samples.read(number) for number in numbers
    }
    with ThreadPoolExecutor(8) as pool:
        for number, sample in zip(numbers, pool.map(under.samples.read, numbers), strict=True):
            assert sample == alone[number]


def test_images_of_one_set_do_not_share_their_noise(images):
    under = corrupted(images, "gaussian_noise", 3)
    first, second = np.flatnonzero(images.labels == 0)[:2]
    noise = [
        pixels(under.samples.read(n)) - pixels(images.samples.read(n)) for n in (first, second)
    ]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2


def test_fingerprints_tell_sets_kinds_severities_seeds_and_sides_apart(images, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.png").touch()
    sets = [
        corrupted(images, "jpeg", 3),
        corrupted(images, "jpeg", 4),
        corrupted(images, "contrast", 3),
        corrupted(images, "jpeg", 3, seed=1),
        corrupted(images, "jpeg", 3, side=336),
        corrupted(open_class_folder(tmp_path), "jpeg", 3),
        images,
    ]
    prints = {under.samples.fingerprint for under in sets}
    assert len(prints) == len(sets)
    assert corrupted(images, "jpeg", 3).samples.fingerprint == sets[0].samples.fingerprint


def test_a_corruption_of_a_corruption_is_a_set_too(images):
    twice = corrupted(corrupted(images, "contrast", 2), "jpeg", 2)
    assert twice.samples.read(0).image.startswith(b"\xff\xd8\xff")
    assert list(twice.samples.describe()) == [
        f"data: 11 pairs in {images.samples.sources[0].name} under contrast 2 under jpeg 2"
    ]


def test_the_loader_takes_it_and_leaves_damaged_images_out(folder, tmp_path):
    (tmp_path / "photo").symlink_to(folder / "photo")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "damaged" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    under = corrupted(open_class_folder(tmp_path), "shot_noise", 2)
    with pytest.raises(UnusableError):
        under.samples.read(0)
    assert under.samples.read(0, image=False).image == b""
    faults = []
    loader = Loader(
        under.samples,
        InOrder(len(under.samples), 4),
        decoder=NativeDecoder(32, Augmentation()),
        image_size=32,
        read_caption=None,
        tokenize=lambda captions: torch.empty(0),
        augment=False,
        workers=2,
        quarantine=Quarantine(None, 1.0, faults.append),
    )
    numbers = np.concatenate([batch.numbers for batch in loader.epoch(0)])
    assert [under.classes[label] for label in under.labels[numbers]] == ["photo"] * 5
    assert sorted(fault.place.key for fault in faults) == ["damaged/a.jpg", "damaged/b.png"]


def test_a_kind_or_severity_that_is_not_there_is_refused_before_anything_is_read(images):
    with pytest.raises(ValueError, match="corruption: expected one of"):
        corrupted(images, "snow", 1)
    with pytest.raises(ValueError, match="severity: expected 1 to 5"):
        corrupted(images, "jpeg", 9)
