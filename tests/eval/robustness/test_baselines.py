"""Regressions on pixels: scikit-learn's accuracies, of growing amounts of training images."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from clipfast.data.images.decode import eval_pixels
from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.datasets.sets import Classification
from clipfast.eval.robustness import baselines
from clipfast.eval.robustness.baselines import pixel_baselines
from clipfast.eval.robustness.evaluation import robustness_table
from clipfast.eval.robustness.shifts import open_shift_folder, shifts_of

SIDE = 8  # the digits' own: a quarter of the features


@pytest.fixture(autouse=True, scope="module")
def few_pixels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_SIDE", SIDE)
        yield


def write(folder, rows, digits=range(10)):
    data = load_digits()
    for row in rows:
        if data.target[row] in digits:
            path = folder / str(data.target[row]) / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[row] * 15.9).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    train = open_class_folder(write(root / "train", range(300)))
    test = open_class_folder(write(root / "test", range(1500, 1797)))
    return Classification("digits", test, train=train)


@pytest.fixture(scope="module")
def shifts(reference, tmp_path_factory):
    few = open_shift_folder(
        write(tmp_path_factory.mktemp("few"), range(400, 600), digits=(3, 8, 9)), reference
    )
    return [*shifts_of(reference, ("gaussian_noise", "contrast"), (5,)), few]


@pytest.fixture(scope="module")
def rows(reference, shifts):
    return pixel_baselines(reference, shifts, workers=2)


def test_more_training_images_are_more_accurate_and_shifts_cost(reference, shifts, rows):
    assert [row.label for row in rows] == [
        f"pixels of {n} images" for n in (20, 34, 59, 102, 175, 300)
    ]
    assert {row.kind for row in rows} == {"baseline"}
    references = [row.reference for row in rows]
    assert references == sorted(references)
    assert 0.5 < references[0] < 0.8 < references[-1] < 1
    assert all(row.shifts[0] < row.reference for row in rows[1:]), "noise costs accuracy"
    table = robustness_table("digits", [shift.name for shift in shifts], rows)
    assert table.baseline.slope > 0
    assert max(abs(row.effective) for row in table.rows) < 0.1, "all are near the line"


def test_the_one_of_all_images_is_scikit_learns_regression(reference, shifts, rows):
    def pixels(images):
        read = (images.samples.read(n).image for n in range(len(images.labels)))
        return torch.stack([eval_pixels(encoded, SIDE).flatten() for encoded in read]).numpy() / 255

    train = reference.train
    with threadpool_limits(1):
        theirs = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000)
        theirs.fit(pixels(train), train.labels)
    assert rows[-1].reference == theirs.score(pixels(reference.test), reference.test.labels)
    for shift, accuracy in zip(shifts[:2], rows[-1].shifts, strict=False):
        assert accuracy == theirs.score(pixels(shift.images), shift.images.labels)
    among = theirs.decision_function(pixels(shifts[2].images))[:, [3, 8, 9]].argmax(1)
    assert rows[-1].shifts[2] == np.mean(among == shifts[2].images.labels)


def test_reference_and_corruptions_are_measured_on_the_same_images(
    reference, shifts, rows, monkeypatch
):
    monkeypatch.setattr(baselines, "_MOST_TEST", 50)
    monkeypatch.setattr(baselines, "_MODELS", 2)
    told = []
    same = shifts_of(reference, ("brightness",), (1,))
    (read,) = {
        tuple(baselines._read(images, 50, 1).labels.tolist())
        for images in (reference.test, same[0].images)
    }
    assert sorted(read) == sorted(5 * list(range(10)))
    few = pixel_baselines(reference, shifts, tell=lambda: told.append(1))
    assert len(told) == 1 + len(shifts)
    assert all((50 * row.reference) % 1 == pytest.approx(0, abs=1e-9) for row in few)


def test_unusable_images_are_left_out_with_their_labels(tmp_path):
    folder = write(tmp_path, range(600, 640))
    for row in (606, 620):
        (file,) = folder.glob(f"*/{row:04d}.png")
        file.write_bytes(b"\x89PNG\r\n\x1a\n")
    images = open_class_folder(folder)
    read = baselines._read(images, 1000, 1)
    kept = sorted(set(range(600, 640)) - {606, 620})
    assert sorted(read.labels.tolist()) == sorted(load_digits().target[kept].tolist())
    for file in folder.glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"expected images that can be used; got none"):
        baselines._read(images, 1000, 1)


def test_a_set_without_training_images_has_no_baselines(reference, shifts):
    alone = Classification("digits", reference.test)
    with pytest.raises(UserError, match="baseline: expected training images of digits"):
        pixel_baselines(alone, shifts)
