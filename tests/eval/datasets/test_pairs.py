"""Pairs: one or several captions per image, in tables, Karpathy's files, folders and shards."""

import json

import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images

from clipfast.data.text.captions import CaptionReader
from clipfast.errors import UserError
from clipfast.eval.datasets.opening import open_suite

KARPATHYS = {"flickr30k": "dataset_flickr30k.json", "mscoco_captions": "dataset_coco.json"}


@pytest.fixture
def photos(tmp_path):
    """scikit-learn's two photographs."""
    found = load_sample_images()
    for name, image in zip(found.filenames, found.images, strict=True):
        Image.fromarray(image).save(tmp_path / name.rpartition("/")[2])
    return tmp_path


def captions(samples):
    return [CaptionReader().all(samples.read(n, image=False).captions) for n in range(len(samples))]


ROWS = (
    ("china.jpg", "A temple."),
    ("flower.jpg", "A flower."),
    ("china.jpg", "A tower, among trees."),
    ("china.jpg", "China."),
)
TOGETHER = [["A temple.", "A tower, among trees.", "China."], ["A flower."]]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", "\t"), ("a.tsv", "\t")])
@pytest.mark.parametrize("header", [("filepath", "title"), ("image", "caption")])
def test_rows_of_the_same_image_are_one_image(photos, name, separator, header):
    rows = [header, *ROWS]
    lines = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    (photos / name).write_text("\n".join(lines))
    found = open_suite(str(photos / name))
    assert found.name == "a"
    samples = found.test.samples
    assert captions(samples) == TOGETHER
    assert samples.read(1).image == (photos / "flower.jpg").read_bytes()
    assert samples.place(1).key == "flower.jpg"


def test_a_row_that_cannot_be_used_takes_its_image_along_only_if_it_is_the_first(photos):
    rows = [("filepath", "title"), *ROWS[:2], ("china.jpg", ""), ("china.jpg", "China.")]
    (photos / "a.csv").write_text("\n".join("\t".join(row) for row in rows))
    samples = open_suite(str(photos / "a.csv")).test.samples
    assert captions(samples) == [["A temple.", "China."], ["A flower."]]


def test_rows_without_an_image_are_not_taken_for_one_image(photos):
    rows = [("filepath", "title"), ("", "A ghost."), *ROWS, ("", "Another.")]
    (photos / "a.csv").write_text("\n".join("\t".join(row) for row in rows))
    samples = open_suite(str(photos / "a.csv")).test.samples
    assert len(samples) == 4
    for number in (0, 3):
        with pytest.raises(UserError, match="no image"):
            samples.read(number)


def test_other_captions_are_another_fingerprint(photos):
    prints = set()
    for rows in (ROWS, ROWS, ROWS[:3]):
        (photos / "a.csv").write_text(
            "\n".join("\t".join(r) for r in (("filepath", "title"), *rows))
        )
        prints.add(open_suite(str(photos / "a.csv")).test.samples.fingerprint)
    assert len(prints) == 2


def test_parquet_lists_have_all_their_captions(photos):
    pandas = pytest.importorskip("pandas")
    names, texts = ["china.jpg", "flower.jpg"], [["A temple.", "China."], ["A flower."]]
    pandas.DataFrame({"filepath": names, "captions": texts}).to_parquet(photos / "a.parquet")
    assert captions(open_suite(str(photos / "a.parquet")).test.samples) == texts


def test_a_folder_of_pairs_is_no_folder_of_classes(photos):
    (photos / "china.txt").write_text("A temple.")
    (photos / "flower.json").write_text('["A flower.", "Petals."]')
    found = open_suite(str(photos))
    assert captions(found.test.samples) == [["A temple."], ["A flower.", "Petals."]]


def test_texts_of_training_shards_are_one_caption_each(photos):
    with webdataset.TarWriter(str(photos / "a.tar")) as tar:
        for name in ("china", "flower"):
            image = (photos / f"{name}.jpg").read_bytes()
            tar.write({"__key__": name, "jpg": image, "txt": f"A {name},\nas it is."})
    found = open_suite(str(photos / "a.tar"))
    assert captions(found.test.samples) == [["A china,\nas it is."], ["A flower,\nas it is."]]


def karpathy(images):
    return json.dumps({"dataset": "x", "images": images})


def entry(filename, split, *texts, **more):
    return {
        "filename": filename,
        "split": split,
        "sentences": [{"raw": text, "tokens": text.split()} for text in texts],
        **more,
    }


@pytest.mark.parametrize(
    ("name", "inside", "more"),
    [
        ("flickr30k", "", {}),
        ("flickr30k", "flickr30k-images", {}),
        ("mscoco_captions", "val2014", {"filepath": "val2014"}),
        ("mscoco_captions", "images/val2014", {"filepath": "val2014"}),
    ],
)
def test_karpathys_test_images_have_all_their_captions(photos, name, inside, more):
    for file in ("china.jpg", "flower.jpg"):
        (photos / inside).mkdir(parents=True, exist_ok=True)
        (photos / file).rename(photos / inside / file)
    images = [
        entry("flower.jpg", "test", "A flower.", " Petals. ", **more),
        entry("gone.jpg", "train", "Gone.", **more),
        entry("gone.jpg", "restval", "Gone.", **more),
        entry("china.jpg", "test", *"123456", **more),
    ]
    file = photos / KARPATHYS[name]
    file.write_text(karpathy(images))
    for found in (open_suite(name, photos), open_suite(str(file))):
        assert found.name == name
        samples = found.test.samples
        assert captions(samples) == [
            ["A flower.", " Petals. "],
            list("123456"),
        ]
        assert samples.read(0).image == (photos / inside / "flower.jpg").read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "expected a JSON document; got: "),
        ("[]", "expected images with filename, split, and sentences with raw; got otherwise"),
        (karpathy([entry("a.jpg", "test", "x"), {"filename": "b.jpg"}]), "otherwise in image 1"),
        (karpathy([entry("a.jpg", "test")]), "otherwise in image 0"),
        (karpathy([entry("a.jpg", "train", "x")]), "expected images of the split test; got none"),
        (karpathy([entry("a.jpg", "test", "x")]), "expected its images beside it.*got no a.jpg"),
    ],
)
def test_what_is_wrong_with_karpathys_file_is_named(tmp_path, content, sentence):
    (tmp_path / "dataset_flickr30k.json").write_text(content)
    with pytest.raises(UserError, match=f"dataset_flickr30k.json: .*{sentence}"):
        open_suite("flickr30k", tmp_path)


def test_a_set_that_is_not_there_is_named_with_its_page(tmp_path):
    with pytest.raises(UserError, match="flickr30k in dataset_flickr30k.json; got none: it is at"):
        open_suite("flickr30k", tmp_path)


def test_pairs_have_no_classes_to_name(photos):
    (photos / "a.csv").write_text("filepath\ttitle\nchina.jpg\tA temple.\n")
    with pytest.raises(UserError, match="--classes: expected a suite of classes; got the pairs of"):
        open_suite(str(photos / "a.csv"), classes=photos / "names.txt")


def test_a_name_that_is_neither_suite_nor_path_is_told_of_both(tmp_path):
    with pytest.raises(UserError, match="--suite mnsit: expected one of mnist, .*; got neither"):
        open_suite("mnsit", tmp_path)
