"""Folders of classes: torchvision's order, the user's names, ImageNet's thousand."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder

from clipfast.data.images.decode import decode
from clipfast.data.images.header import read_header
from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import ClassFolder, class_folders, open_class_folder
from clipfast.eval.datasets.imagenet import imagenet_prompts, open_imagenet, open_imagenet_v2
from clipfast.eval.datasets.opening import open_suite


def files(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_images_and_labels_are_in_torchvisions_order(tmp_path):
    root = files(
        tmp_path,
        *("b/2.jpg", "b/10.JPEG", "b/deeper/1.png", "b/a/9.webp", "b/notes.txt"),
        *("a b/x.jpg", "C/y.bmp", "C/.hidden.png", "outside.jpg"),
    )
    (root / "C" / "link").symlink_to(root / "a b")
    theirs = ImageFolder(str(root)).samples
    source = ClassFolder(root, class_folders(root))
    paths = [str(root / source.place(i).key) for i in range(len(source.labels))]
    assert list(zip(paths, source.labels.tolist(), strict=True)) == theirs
    assert source.read(0).image == source.place(0).key.encode()


def put(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp", "jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_every_format_are_torchvisions_pixel_for_pixel(tmp_path, ending, mode):
    photo = Image.fromarray(load_sample_images().images[0]).convert(mode)
    for number in range(12):
        part = photo.crop((50 * number, 20 * number, 50 * number + 37, 20 * number + 23))
        put(tmp_path / str(number % 3) / f"{number}.{ending}", part)
    images, peer = open_suite(str(tmp_path)).test, ImageFolder(str(tmp_path))
    assert images.labels.tolist() == peer.targets
    for number in range(12):
        encoded, expected = images.samples.read(number).image, np.asarray(peer[number][0])
        read = Image.open(io.BytesIO(encoded)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(read), expected)
        shown = decode(encoded, read_header(encoded)).numpy()
        assert np.abs(shown.astype(int) - expected).max() <= (2 if ending == "jpg" else 0)


def test_a_damaged_image_of_a_foreign_format_is_told(tmp_path):
    put(tmp_path / "a" / "x.tif", Image.fromarray(load_sample_images().images[0]))
    file = tmp_path / "a" / "x.tif"
    samples = open_class_folder(tmp_path).samples
    for content in (file.read_bytes()[:2000], b"no image"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="damaged image: "):
            samples.read(0)


def test_files_of_other_sizes_are_another_fingerprint(tmp_path):
    root = files(tmp_path, "a/1.jpg", "b/2.jpg")
    one = open_class_folder(root).samples.fingerprint
    assert open_class_folder(root).samples.fingerprint == one
    (root / "b" / "2.jpg").write_bytes(b"other")
    assert open_class_folder(root).samples.fingerprint != one


def test_names_and_sentences_come_from_the_folder_or_its_files(tmp_path):
    root = files(tmp_path, "n2/a.jpg", "n1/b.jpg", "n1/c.jpg")
    images = open_class_folder(root)
    assert images.classes == ("n1", "n2")
    assert images.templates == ("a photo of a {}.",)
    assert images.labels.tolist() == [0, 0, 1]
    (root / "classes.txt").write_text("tabby cat\n\nSpitz\n")
    (root / "templates.txt").write_text("one {}\nanother {}!\n")
    images = open_class_folder(root)
    assert images.classes == ("tabby cat", "Spitz")
    assert images.templates == ("one {}", "another {}!")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "expected a folder for each class; got none"),
        ({"a/x.txt": b""}, "expected images in the folders of the classes; got none in 1 folders"),
        (
            {"a/x.jpg": b"", "b/x.jpg": b"", "classes.txt": b"one"},
            "classes.txt: expected 2 names, one a line for each class; got 1",
        ),
        ({"a/x.jpg": b"", "classes.txt": b"\xff\xfe"}, "classes.txt: expected UTF-8"),
        (
            {"a/x.jpg": b"", "templates.txt": b"a photo"},
            r"templates.txt: expected \{\} where the name goes; got 'a photo'",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_of_classes_is_named(tmp_path, content, sentence):
    for name, text in content.items():
        files(tmp_path, name)
        (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        open_class_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "validation"), [(("train", "val", "test"), True), (("train", "val"), False)]
)
def test_folders_of_splits_are_one_set(tmp_path, names, validation):
    root = files(
        tmp_path / "pets",
        *(
            f"{split}/{animal}/{n}.jpg"
            for split in names
            for animal in ("cat", "dog")
            for n in "12"
        ),
        *(f"{names[-1]}/owl/{n}.jpg" for n in "123"),
    )
    (root / "templates.txt").write_text("one {}")
    files(root, "train/ant/1.jpg")
    found = open_suite(str(root))
    assert found.name == "pets"
    assert found.test.labels.tolist() == [1, 1, 2, 2, 3, 3, 3]
    assert found.train.labels.tolist() == [0, 1, 1, 2, 2]
    assert (found.validation is not None) == validation
    for images in (found.test, found.train):
        assert images.classes == ("ant", "cat", "dog", "owl")
        assert images.templates == ("one {}",)
    assert open_suite(str(root), train=False).train is None


@pytest.mark.parametrize("names", [("train", "bus", "test"), ("train", "bus"), ("train",)])
def test_classes_that_are_called_as_splits_are_classes(tmp_path, names):
    found = open_suite(str(files(tmp_path, *(f"{name}/x.jpg" for name in names))))
    assert found.test.classes == tuple(sorted(names))
    assert found.train is None


def test_a_users_names_and_sentences_take_the_place_of_the_sets(tmp_path):
    root = files(tmp_path / "set", "train/a/1.jpg", "test/a/1.jpg", "test/b/2.jpg")
    (tmp_path / "names").write_text("Siamese\nSpitz\n")
    (tmp_path / "sentences").write_text("a {c}\nthe {}\n")
    found = open_suite(str(root), classes=tmp_path / "names")
    assert found.test.classes == found.train.classes == ("Siamese", "Spitz")
    assert found.test.templates == ("a photo of a {}.",)
    assert found.test.prompts == str(tmp_path / "names")
    found = open_suite(str(root), templates=tmp_path / "sentences")
    assert found.train.templates == ("a {}", "the {}")
    assert found.test.classes == ("a", "b")
    (tmp_path / "names").write_text("Siamese\n")
    with pytest.raises(
        UserError, match="names: expected 2 names, one a line for each class; got 1"
    ):
        open_suite(str(root), classes=tmp_path / "names")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_class_folder(tmp_path / "nowhere")


def test_imagenet_has_a_thousand_folders_and_open_clips_names_and_sentences(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    for number in range(1000):
        (tmp_path / f"n{number:08d}").mkdir()
    files(tmp_path, "n00000999/z.JPEG", "n00000007/x.JPEG", "n00000007/y.JPEG")
    images = open_imagenet(tmp_path)
    assert images.labels.tolist() == [7, 7, 999]
    assert images.classes == tuple(open_clip.IMAGENET_CLASSNAMES)
    theirs = [template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [template.replace("{}", "cat") for template in images.templates] == theirs
    (tmp_path / "n00000008").rmdir()
    with pytest.raises(UserError, match="expected 1,000 folders, one for each class.*got 999"):
        open_imagenet(tmp_path)


@pytest.mark.parametrize("above", ["", "ImageNetV2-matched-frequency"])
def test_imagenet_v2s_folders_are_numbers(tmp_path, above):
    root = tmp_path / above
    for number in range(1000):
        (root / str(number)).mkdir(parents=True)
    files(root, "10/x.jpeg", "9/y.jpeg", "999/z.jpeg")
    assert open_imagenet_v2(tmp_path).labels.tolist() == [9, 10, 999]
    (root / "10" / "x.jpeg").unlink()
    (root / "10").rename(root / "ten")
    with pytest.raises(UserError, match="expected the folders 0 to 999, .*; got 1000, first 0"):
        open_imagenet_v2(tmp_path)


def thousand(folder):
    for number in range(1000):
        (folder / f"n{number:08d}").mkdir(parents=True)
    return files(folder, "n00000001/x.JPEG", "n00000002/y.JPEG")


@pytest.mark.parametrize("above", ["", "imagenet", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_has_training_images_where_they_are(tmp_path, above):
    pytest.importorskip("open_clip")
    thousand(tmp_path / above / "val")
    found = open_suite("imagenet1k", tmp_path)
    assert found.test.labels.tolist() == [1, 2]
    assert found.test.prompts == "open_clip"
    assert found.train is None
    assert open_suite("imagenet1k", tmp_path / above / "val").test.labels.tolist() == [1, 2]
    files(thousand(tmp_path / above / "train"), "n00000999/z.JPEG")
    assert open_suite("imagenet1k", tmp_path).train.labels.tolist() == [1, 2, 999]


def test_a_natural_shift_is_a_suite_of_its_own_classes(tmp_path):
    pytest.importorskip("open_clip")
    timm = pytest.importorskip("timm.data")
    wnids, names = timm.ImageNetInfo().label_names(), imagenet_prompts().classes
    files(tmp_path / "imagenet-a", f"{wnids[7]}/x.jpg", f"{wnids[999]}/y.jpg")
    found = open_suite("imagenet-a", tmp_path)
    assert found.name == "imagenet-a"
    assert found.test.classes == (names[7], names[999])
    files(tmp_path / "imagenet-a", "cat/z.jpg")
    with pytest.raises(UserError, match="expected folders named by ImageNet's classes.*got cat"):
        open_suite("imagenet-a", tmp_path)
