"""CLIP_benchmark's test shards, as webdataset writes them: classes, captions, damage."""

import io
import os

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from clipfast.data.text.captions import CaptionReader
from clipfast.errors import UserError
from clipfast.eval.datasets.opening import open_suite
from clipfast.eval.datasets.test_shards import suite_of

NAMES = ["nought", *(f"the {n}" for n in range(1, 10))]


def encoded(number, image_format):
    grey = (load_digits().images[number] * 15.9).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).convert("RGB").save(buffer, image_format, lossless=True)
    return buffer.getvalue()


def write(folder, samples, shard=8):
    """As CLIP_benchmark's converter lays a split out."""
    folder.mkdir(parents=True)
    sink = webdataset.ShardWriter(str(folder / "%d.tar"), maxcount=shard, verbose=0)
    for number, sample in enumerate(samples):
        sink.write({"__key__": f"s{number:07d}", **sample})
    sink.close()
    (folder / "nshards.txt").write_text(f"{len(list(folder.glob('*.tar')))}\n")


def digits(numbers, ending="webp", image_format="WEBP"):
    targets = load_digits().target
    return [{ending: encoded(n, image_format), "cls": int(targets[n])} for n in numbers]


@pytest.fixture
def root(tmp_path):
    """20 images to test on in three shards, 10 to train on in two."""
    root = tmp_path / "wds_mnist"
    write(root / "test", digits(range(20)))
    write(root / "train", digits(range(20, 30)))
    (root / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}!\n")
    return root


def peers(folder):
    """What webdataset reads, in order."""
    shards = sorted(folder.glob("*.tar"), key=lambda path: int(path.stem))
    return list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))


def test_images_classes_and_prompts_are_those_of_the_shards(root):
    found = open_suite(str(root))
    assert found.name == "mnist"
    for images, split in ((found.test, "test"), (found.train, "train")):
        expected = peers(root / split)
        assert len(images.samples) == len(expected)
        assert images.labels.tolist() == [int(sample["cls"]) for sample in expected]
        for number, sample in enumerate(expected):
            assert images.samples.read(number).image == sample["webp"]
            assert images.samples.place(number).key == sample["__key__"]
    assert found.test.samples.read(9, image=False).image == b""
    assert found.test.classes == tuple(NAMES)
    assert found.test.templates == ("a {}.", "the {}!")
    assert found.test.prompts == "the data"


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "JPEG"), ("png", "PNG")])
def test_other_formats_of_images_do_too(tmp_path, ending, kind):
    write(tmp_path / "test", digits(range(3), ending, kind))
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    images = open_suite(str(tmp_path)).test
    assert images.samples.read(2).image == encoded(2, kind)
    assert images.templates == ("a photo of a {}.",)
    assert images.prompts == "clipfast"


@pytest.mark.parametrize("inside", ["", "mnist", "wds_mnist", "wds_vtab-mnist"])
def test_a_suite_by_name_may_be_shards(root, inside):
    (root.parent / "sets").mkdir()
    root.rename(root.parent / "sets" / inside if inside else root.parent / "sets")
    found = open_suite("mnist", root.parent / "sets")
    assert found.name == "mnist"
    assert len(found.test.labels) == 20
    (root.parent / "sets" / inside / "classnames.txt").unlink()
    assert open_suite("mnist", root.parent / "sets").test.classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("path", "suite"),
    [
        ("data/wds_vtab-cifar10/", "cifar10"),
        ("https://huggingface.co/datasets/clip-benchmark/wds_mnist/tree/main", "mnist"),
        ("/sets/imagenet-a", "imagenet-a"),
    ],
)
def test_the_suite_is_told_by_the_folders_name(path, suite):
    assert suite_of(path) == suite


def test_flowers_by_shards_is_of_the_mean_over_classes(root):
    root.rename(root.parent / "wds_vtab-flowers")
    assert open_suite(str(root.parent / "wds_vtab-flowers")).per_class
    assert open_suite("flowers", root.parent).per_class


def test_shards_come_from_a_url(root):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(str(root), f"/{os.path.basename(root)}", recursive=True)
    found = open_suite(f"memory://{os.path.basename(root)}")
    assert found.test.samples.read(11).image == encoded(11, "WEBP")
    assert found.train is not None
    assert found.test.samples.place(11).shard == "memory://wds_mnist/test/1.tar"


def test_captions_are_lines_of_the_texts(tmp_path):
    photos = []
    for photo in load_sample_images().images:
        buffer = io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG")
        photos.append(buffer.getvalue())
    texts = ["A temple.\nA tower among trees. \n", "A flower.\r\n\nPetals."]
    write(
        tmp_path / "test",
        [{"jpg": p, "txt": t} for p, t in zip(photos, texts, strict=True)],
    )
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    for found in (open_suite(str(tmp_path)), open_suite("flickr30k", tmp_path)):
        samples = found.test.samples
        read = CaptionReader().all
        assert read(samples.read(0).captions) == ["A temple.", "A tower among trees."]
        assert read(samples.read(1, image=False).captions) == ["A flower.", "Petals."]
        assert samples.read(1).image == photos[1]
    assert found.name == "flickr30k"


def test_what_cannot_be_used_is_told_and_left_out(tmp_path):
    image = encoded(0, "PNG")
    write(
        tmp_path / "test",
        [
            {"png": image, "cls": b"1"},
            {"png": image, "txt": b"a digit"},
            {"cls": b"2"},
            {"png": image, "cls": b"three"},
            {"png": image, "cls": b"-1"},
            {"png": b"", "cls": b"4"},
            {"png": image, "cls": b"5\n"},
        ],
    )
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    images = open_suite(str(tmp_path)).test
    assert images.labels.tolist() == [1, 5]
    faults = list(images.samples.faults())
    assert [fault.place.key for fault in faults] == [f"s{n:07d}" for n in range(1, 6)]
    assert [fault.reason for fault in faults] == [
        "no class (cls) next to png, txt",
        "no image (jpg, png, jpeg, webp) next to cls",
        "expected a number from 0 on as class; got b'three'",
        "expected a number from 0 on as class; got b'-1'",
        "expected an image of 1 to 256,000,000 bytes; got 0",
    ]


def test_a_shard_that_is_cut_short_gives_what_is_before(root):
    shard = root / "test" / "2.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    images = open_suite(str(root)).test
    assert 16 <= len(images.labels) < 20
    assert any("truncated at byte 3000" in fault.reason for fault in images.samples.faults())


def test_a_shard_that_changes_afterwards_is_told(root):
    images = open_suite(str(root)).test
    (root / "test" / "0.tar").write_bytes(b"")
    with pytest.raises(UserError, match="the shard has changed since it was opened"):
        images.samples.read(0)
    (root / "test" / "0.tar").unlink()
    with pytest.raises(UserError, match="the shard cannot be read: .*no such file"):
        images.samples.read(0)


def test_another_class_or_image_is_another_fingerprint(tmp_path):
    sets = {
        "a": digits(range(5)),
        "b": digits(range(5)),
        "label": [*digits(range(4)), {"webp": encoded(4, "WEBP"), "cls": 9}],
        "image": [*digits(range(4)), {"webp": encoded(14, "WEBP"), "cls": 4}],
    }
    found = {}
    for name, samples in sets.items():
        write(tmp_path / name / "test", samples)
        (tmp_path / name / "classnames.txt").write_text("\n".join(NAMES))
        found[name] = open_suite(str(tmp_path / name)).test.samples.fingerprint
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 3


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("test/nshards.txt", "many", "nshards.txt: expected the number of its shards; got 'many'"),
        ("test/nshards.txt", "9", "test/3.tar: no such file"),
        (
            "dataset_type.txt",
            "multilabel",
            "expected classification or retrieval; got 'multilabel'",
        ),
        ("classnames.txt", "one\ntwo\n", "expected labels from 0 to 1, one of 2 classes; got 0 to"),
        ("zeroshot_classification_templates.txt", "a photo", "expected {} where the name goes"),
    ],
)
def test_what_is_wrong_with_the_files_beside_is_named(root, file, content, sentence):
    (root / file).write_text(content)
    with pytest.raises(UserError) as told:
        open_suite(str(root))
    assert sentence in str(told.value)


def test_classes_without_names_are_refused(root):
    (root / "classnames.txt").unlink()
    root.rename(root.parent / "ours")
    with pytest.raises(UserError, match="ours/classnames.txt: no such file, which has the names"):
        open_suite(str(root.parent / "ours"))


def test_shards_without_labels_are_refused(tmp_path):
    write(tmp_path / "test", [{"png": encoded(0, "PNG"), "txt": "a digit"}])
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    with pytest.raises(UserError, match=r"and a class \(cls\); got none; no class \(cls\) next to"):
        open_suite(str(tmp_path))
