"""IDX files: what torchvision reads of MNIST, and sentences for what is damaged."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from clipfast.data.images.decode import decode
from clipfast.data.images.header import read_header
from clipfast.errors import UserError
from clipfast.eval.datasets.idx import read_idx
from clipfast.eval.datasets.opening import open_suite

# Debian's package dataset-fashion-mnist.
FASHION = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_digits(folder, ending="", joint="-"):
    digits = load_digits()
    images = np.stack(
        [
            np.asarray(Image.fromarray((image * 15.9).astype(np.uint8)).resize((28, 28)))
            for image in digits.images[:90]
        ]
    )
    for part, which in (("train", slice(60)), ("t10k", slice(60, 90))):
        write_idx(folder / f"{part}-images{joint}idx3-ubyte{ending}", images[which])
        write_idx(folder / f"{part}-labels{joint}idx1-ubyte{ending}", digits.target[which])
    return folder


def assert_same(images, peer):
    assert len(images.samples) == len(peer)
    assert images.labels.tolist() == peer.targets.tolist()
    for number in range(len(peer)):
        encoded = images.samples.read(number).image
        grey = np.asarray(Image.open(io.BytesIO(encoded)))
        np.testing.assert_array_equal(grey, peer.data[number].numpy())
        shown = decode(encoded, read_header(encoded)).numpy()
        np.testing.assert_array_equal(shown, np.stack([grey] * 3, axis=2))


def test_mnist_is_what_torchvision_reads(tmp_path):
    write_digits(tmp_path / "MNIST" / "raw")
    found = open_suite("mnist", tmp_path)
    assert_same(found.test, datasets.MNIST(str(tmp_path), train=False))
    assert_same(found.train, datasets.MNIST(str(tmp_path), train=True))
    assert found.validation is None
    assert found.test.classes == tuple("0123456789")
    assert found.test.templates == ('a photo of the number: "{}".',)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("inside", ["", "raw", "mnist", "MNIST/raw"])
def test_the_files_are_found_packed_or_not_wherever_they_are(tmp_path, ending, joint, inside):
    write_digits(tmp_path / inside, ending, joint)
    assert len(open_suite("mnist", tmp_path).test.labels) == 30
    assert open_suite("mnist", tmp_path, train=False).train is None


@pytest.mark.skipif(not FASHION.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_found():
    found = open_suite("fashion_mnist", FASHION.parent)
    assert len(found.test.labels) == 10_000
    assert np.bincount(found.train.labels).tolist() == [6000] * 10
    assert found.test.classes[found.test.labels[0]] == "ankle boot"


def test_other_digits_in_files_of_the_same_size_are_another_fingerprint(tmp_path):
    write_digits(tmp_path)
    one = open_suite("mnist", tmp_path).test.samples.fingerprint
    path = tmp_path / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)
    assert open_suite("mnist", tmp_path).test.samples.fingerprint != one


def test_test_images_alone_are_enough(tmp_path):
    write_digits(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    assert open_suite("mnist", tmp_path).train is None


def test_a_set_that_is_not_there_is_told_with_the_way_to_get_it(tmp_path):
    sentence = "expected mnist: t10k-images-idx3-ubyte, or .gz; got none: --download fetches it"
    with pytest.raises(UserError, match=sentence):
        open_suite("mnist", tmp_path)


HEADER = bytes([0, 0, 8, 3]) + np.array([2, 3, 4], ">u4").tobytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "which begins with 00 00 08 03; got an empty file"),
        (b"\x89PNG" + bytes(40), "bytes in 3 dimensions, .* got 89 50 4e 47"),
        (bytes([0, 0, 8, 1]) + bytes(40), "got 00 00 08 01"),
        (bytes([0, 0, 13, 3]) + bytes(40), "got 00 00 0d 03"),
        (HEADER[:10], "truncated in its header, at byte 10"),
        (HEADER + bytes(23), "expected 24 bytes after its header, for 2 × 3 × 4; got 23"),
        (HEADER + bytes(25), "for 2 × 3 × 4; got more"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(9), "got 9"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, sentence, packed):
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=sentence):
        read_idx(path, 3)


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: c[:20] + b"\0" * 9 + c[29:]])
def test_a_damaged_packed_file_is_one_sentence(tmp_path, damage):
    path = tmp_path / "x.gz"
    random = np.random.default_rng(0).integers(0, 256, 24).astype(np.uint8).tobytes()
    path.write_bytes(damage(gzip.compress(HEADER + random)))
    with pytest.raises(UserError, match="x.gz: expected a whole file; got: "):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.zeros(29), "expected a label for each of 30 images; got 29"),
        (np.full(30, 10), "expected labels from 0 to 9, one of 10 classes; got 10 to 10"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, sentence):
    write_digits(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(UserError, match=sentence):
        open_suite("mnist", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="expected t10k-labels-idx1-ubyte, or .gz; got none"):
        open_suite("mnist", tmp_path)
