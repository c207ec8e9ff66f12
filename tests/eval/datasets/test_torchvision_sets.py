"""torchvision's sets: pixel for pixel and label for label what torchvision itself gives."""

import io
from pathlib import Path

import numpy as np
import pytest
import torchvision_layouts as layouts
from PIL import Image
from torchvision import datasets

from clipfast.data.images.decode import decode
from clipfast.data.images.header import read_header
from clipfast.errors import UserError
from clipfast.eval.datasets.opening import SUITES, open_suite
from clipfast.eval.datasets.torchvision_sets import SETS


def theirs(kind, split="split", test="test", train="train", validation=None, **named):
    """What torchvision makes of the test, training and validation splits."""
    given = [test, train, validation]
    return [
        (lambda root, s=s: None if s is None else kind(str(root), **{split: s}, **named))
        for s in given
    ]


PEERS = {
    "cifar10": theirs(datasets.CIFAR10, "train", False, True),
    "cifar100": theirs(datasets.CIFAR100, "train", False, True),
    "stl10": theirs(datasets.STL10),
    "svhn": theirs(datasets.SVHN),
    "food101": theirs(datasets.Food101),
    "flowers": theirs(datasets.Flowers102, validation="val"),
    "dtd": theirs(datasets.DTD, validation="val"),
    "pets": theirs(datasets.OxfordIIITPet, train="trainval"),
    "fgvc_aircraft": theirs(datasets.FGVCAircraft, validation="val"),
    "cars": theirs(datasets.StanfordCars),
    "country211": theirs(datasets.Country211, validation="valid"),
    "gtsrb": theirs(datasets.GTSRB),
    "fer2013": theirs(datasets.FER2013),
    "renderedsst2": theirs(datasets.RenderedSST2, validation="val"),
    "clevr_count_all": theirs(datasets.CLEVRClassification, test="val"),
}


@pytest.fixture(autouse=True)
def digits_for_the_real_files(monkeypatch):
    layouts.without_sums(monkeypatch)


def written(name, root):
    getattr(layouts, name)(root)
    return root


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def assert_same_images(images, peer, fewest=0):
    assert len(images.samples) == len(images.labels) == len(peer)
    for number in range(len(peer)):
        image, label = peer[number]
        assert images.labels[number] == label - fewest
        encoded = images.samples.read(number).image
        np.testing.assert_array_equal(pixels(encoded), np.asarray(image.convert("RGB")))
        assert decode(encoded, read_header(encoded)).shape == (image.height, image.width, 3)


@pytest.mark.parametrize("name", PEERS)
def test_a_set_is_what_torchvision_reads(tmp_path, name):
    found = open_suite(name, written(name, tmp_path))
    for images, peer in zip((found.test, found.train, found.validation), PEERS[name], strict=True):
        if (expected := peer(tmp_path)) is None:
            assert images is None
        else:
            assert_same_images(images, expected, fewest=3 if name == "clevr_count_all" else 0)
    assert found.per_class == SUITES[name].per_class
    assert all("{}" in template for template in found.test.templates)
    assert found.test.prompts == "clipfast"


def test_files_reach_the_decoder_as_they_are(tmp_path):
    images = open_suite("pets", written("pets", tmp_path)).test
    place = images.samples.place(3)
    assert images.samples.read(3).image == (Path(place.shard) / place.key).read_bytes()
    assert images.samples.read(3, image=False).image == b""


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("cifar10", [f"digit {n}" for n in range(10)]),
        ("pets", ["American Shorthair", "Pug"]),
        ("country211", ["Andorra", "the United Kingdom"]),
        ("renderedsst2", ["negative", "positive"]),
        ("clevr_count_all", [str(n) for n in range(3, 11)]),
        ("caltech101", ["face", "yin and yang symbol"]),
        ("sun397", ["abbey", "outdoor apartment building"]),
        ("eurosat", ["farmland with annual crops", "a sea or a lake"]),
        ("flowers", None),
        ("gtsrb", None),
    ],
)
def test_classes_have_names_that_can_be_read(tmp_path, name, classes):
    images = open_suite(name, written(name, tmp_path)).test
    if classes is not None:
        assert list(images.classes) == classes
    else:
        assert len(images.classes) == SUITES[name].classes
    assert not any("_" in name or "/" in name for name in images.classes)


def test_caltech_trains_on_thirty_of_each_class_and_tests_on_the_others(tmp_path):
    found = open_suite("caltech101", written("caltech101", tmp_path))
    assert np.bincount(found.train.labels).tolist() == [30, 30]
    assert np.bincount(found.test.labels).tolist() == [10, 5]
    again = open_suite("caltech101", tmp_path)
    assert again.test.samples.fingerprint == found.test.samples.fingerprint
    assert_is_a_part_of(datasets.Caltech101(str(tmp_path)), found)


def test_eurosat_tests_on_a_fifth_of_each_class(tmp_path):
    found = open_suite("eurosat", written("eurosat", tmp_path))
    peer = datasets.EuroSAT(str(tmp_path))
    counts = np.bincount(peer.targets)
    np.testing.assert_array_equal(np.bincount(found.test.labels), counts // 5)
    np.testing.assert_array_equal(np.bincount(found.train.labels), counts - counts // 5)
    assert_is_a_part_of(peer, found)


def assert_is_a_part_of(peer, found):
    """Training and test images together are all of torchvision's."""
    ours = [
        (images.samples.read(n).image, int(images.labels[n]))
        for images in (found.test, found.train)
        for n in range(len(images.labels))
    ]
    shown = sorted((pixels(encoded).tobytes(), label) for encoded, label in ours)
    assert shown == sorted((np.asarray(i.convert("RGB")).tobytes(), label) for i, label in peer)


def test_sun397_is_in_one_order_and_takes_its_partition_where_it_is(tmp_path):
    found = open_suite("sun397", written("sun397", tmp_path))
    assert found.train is None
    keys = [found.test.samples.place(n).key for n in range(30)]
    assert keys == sorted(keys)
    peer = {Path(p).name: label for p, label in _sun_files(tmp_path)}
    assert [peer[Path(key).name] for key in keys] == found.test.labels.tolist()
    folder = tmp_path / "SUN397" / "Partitions"
    folder.mkdir()
    (folder / "Training_01.txt").write_text("\n".join(f"/{key}" for key in keys[10:20]))
    (folder / "Testing_01.txt").write_text("\n".join(f"/{key}" for key in keys[:5]) + "\n")
    found = open_suite("sun397", tmp_path)
    assert [found.train.samples.place(n).key for n in range(10)] == keys[10:20]
    assert [found.test.samples.place(n).key for n in range(5)] == keys[:5]


def _sun_files(root):
    found = datasets.SUN397(str(root), loader=str)
    return [found[n] for n in range(len(found))]


def test_a_set_is_found_in_its_own_folder_and_in_one_called_as_the_suite(tmp_path):
    written("dtd", tmp_path / "sets" / "dtd")
    for root in ("sets", "sets/dtd", "sets/dtd/dtd", "sets/dtd/dtd/dtd"):
        assert len(open_suite("dtd", tmp_path / root).test.labels) == 20


def test_training_images_that_are_missing_or_not_wanted_are_left_out(tmp_path):
    written("svhn", tmp_path)
    assert len(open_suite("svhn", tmp_path).train.labels) == 30
    assert open_suite("svhn", tmp_path, train=False).train is None
    (tmp_path / "train_32x32.mat").unlink()
    assert open_suite("svhn", tmp_path).train is None


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_is_told_with_the_way_to_get_it(tmp_path, name):
    way = "--download fetches it from" if SETS[name].fetched else "it is at"
    with pytest.raises(UserError, match=f"{name} in {SETS[name].at}; got none: {way} http"):
        open_suite(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_sets_are_told_by_name(tmp_path):
    written("food101", tmp_path)
    meta = tmp_path / "food-101" / "meta" / "test.json"
    meta.write_text('{"digit_0": [')
    with pytest.raises(UserError, match="food-101: expected food101, whole; got: Expecting"):
        open_suite("food101", tmp_path)
    meta.unlink()
    with pytest.raises(UserError, match="food-101: expected the whole of food101; got a part"):
        open_suite("food101", tmp_path)


def test_files_of_another_md5_sum_than_torchvisions_are_refused(tmp_path, monkeypatch):
    written("cifar10", tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="cifar-10-batches-py: expected the whole of cifar10"):
        open_suite("cifar10", tmp_path)


def test_splits_of_other_classes_are_refused(tmp_path):
    written("dtd", tmp_path)
    train = tmp_path / "dtd" / "dtd" / "labels" / "train1.txt"
    lines = [line for line in train.read_text().split("\n") if not line.startswith("digit_0")]
    train.write_text("\n".join(lines))
    with pytest.raises(UserError, match="same classes in all splits of dtd; got 10 .* and 9"):
        open_suite("dtd", tmp_path)


def test_fer2013s_test_images_without_labels_are_refused(tmp_path):
    written("fer2013", tmp_path)
    rows = (tmp_path / "fer2013" / "fer2013.csv").read_text().split("\n")[31:]
    (tmp_path / "fer2013" / "fer2013.csv").unlink()
    shown = ["pixels", *(row.split(",")[1] for row in rows)]
    (tmp_path / "fer2013" / "test.csv").write_text("\n".join(shown))
    with pytest.raises(
        UserError, match=r"expected fer2013.csv or .*; got test.csv, which does not"
    ):
        open_suite("fer2013", tmp_path)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.DTD, "_URL", (tmp_path / "nowhere.tar.gz").as_uri())
    with pytest.raises(UserError, match="--download dtd: expected the files; got: .*nowhere"):
        open_suite("dtd", tmp_path, download=True)


def test_other_pixels_are_another_fingerprint(tmp_path):
    one = open_suite("cifar10", written("cifar10", tmp_path / "a")).test.samples
    assert open_suite("cifar10", tmp_path / "a").test.samples.fingerprint == one.fingerprint
    path = written("cifar10", tmp_path / "b") / "cifar-10-batches-py" / "test_batch"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert open_suite("cifar10", tmp_path / "b").test.samples.fingerprint != one.fingerprint


def test_pcam_is_what_torchvision_reads(tmp_path):
    h5py = pytest.importorskip("h5py")
    for split, numbers in (("train", range(40)), ("valid", range(40, 60)), ("test", range(60, 90))):
        stem = tmp_path / "pcam" / f"camelyonpatch_level_2_split_{split}"
        stem.parent.mkdir(exist_ok=True)
        labels = np.array([layouts.label(n) % 2 for n in numbers], np.uint8)
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack([layouts.coloured(n, 96) for n in numbers])
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1)
    found = open_suite("pcam", tmp_path)
    for images, split in ((found.test, "test"), (found.train, "train"), (found.validation, "val")):
        assert_same_images(images, datasets.PCAM(str(tmp_path), split=split))
