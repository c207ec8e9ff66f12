"""Shifts: their classes are found among the reference's, and classifiers of the reference are
restricted to them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipfast.demo.digits import DIGIT_WORDS, render_split
from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.datasets.imagenet import open_imagenet
from clipfast.eval.datasets.sets import Classification
from clipfast.eval.robustness.corruptions import KINDS
from clipfast.eval.robustness.shifts import (
    NATURAL,
    NOT_READ,
    Shift,
    natural_shifts,
    open_shift_folder,
    shifts_of,
)

timm_data = pytest.importorskip("timm.data")
WNIDS = timm_data.ImageNetInfo().label_names()
PIXEL = np.zeros((4, 4, 3), np.uint8)


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXEL).save(folder / name)
    return folder


def digits(folder, split, words=DIGIT_WORDS):
    for pair in render_split(split, 60, 16, seed=0):
        if DIGIT_WORDS[pair.digit] in words:
            path = folder / DIGIT_WORDS[pair.digit] / f"{pair.writing}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pair.image).save(path)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    test = open_class_folder(digits(tmp_path_factory.mktemp("digits"), "test"))
    return Classification("digits", test._replace(templates=("the digit {}",)))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    pytest.importorskip("open_clip")
    root = tmp_path_factory.mktemp("imagenet")
    for wnid in WNIDS:
        (root / wnid).mkdir()
    return Classification("imagenet1k", open_imagenet(put(root, f"{WNIDS[5]}/a.png")))


def test_every_corruption_and_severity_is_a_shift_of_the_same_classes(reference):
    shifts = shifts_of(reference)
    assert len({shift.name for shift in shifts}) == len(shifts) == 5 * len(KINDS)
    assert {shift.corruption for shift in shifts} == set(KINDS)
    assert len({shift.images.samples.fingerprint for shift in shifts}) == len(shifts)
    logits = torch.randn(3, 10)
    for shift in shifts:
        assert shift.images.labels is reference.test.labels
        assert shift.logits(logits) is logits
    few = shifts_of(reference, ("jpeg", "contrast"), (1, 5), seed=3)
    assert [shift.name for shift in few] == ["jpeg 1", "jpeg 5", "contrast 1", "contrast 5"]


def test_a_users_folder_may_lack_classes_and_keeps_the_references_sentences(reference, tmp_path):
    words = ["three", "eight", "one"]
    shift = open_shift_folder(digits(tmp_path / "others", "unseen", words), reference)
    assert (shift.name, shift.images.templates) == ("others", ("the digit {}",))
    assert shift.images.classes == ("eight", "one", "three")
    logits = torch.randn(4, 10)
    column = reference.test.classes.index
    expected = logits[:, [column("eight"), column("one"), column("three")]]
    assert torch.equal(shift.logits(logits), expected)


def test_a_users_folder_of_other_classes_is_refused(reference, tmp_path):
    put(tmp_path, "three/a.png", "eleven/a.png")
    with pytest.raises(UserError, match="expected classes of digits, such as eight; got eleven"):
        open_shift_folder(tmp_path, reference)


def test_a_class_of_several_has_the_likeliest_ones_logit(reference):
    shift = Shift("pooled", reference.test, ((3,), (0, 7), (9, 1, 2)))
    logits = torch.randn(50, 10)
    expected = [
        [row[3], max(row[0], row[7]), max(row[9], row[1], row[2])] for row in logits.tolist()
    ]
    assert shift.logits(logits).tolist() == expected


def test_natural_shifts_are_found_by_their_archives_names_among_others(imagenet, tmp_path):
    put(tmp_path / "imagenet-a", f"{WNIDS[9]}/b.png", f"{WNIDS[6]}/a.png", f"{WNIDS[6]}/c.png")
    put(tmp_path / "imagenet-r", f"{WNIDS[1]}/a.png")
    put(tmp_path / "sketch", *(f"{wnid}/a.png" for wnid in WNIDS))
    (tmp_path / "other").mkdir()
    shifts = {shift.name: shift for shift in natural_shifts(tmp_path, imagenet)}
    assert list(shifts) == ["imagenet_sketch", "imagenet-a", "imagenet-r"]
    names = imagenet.test.classes
    natural = shifts["imagenet-a"]
    assert natural.images.classes == (names[6], names[9])
    assert natural.images.labels.tolist() == [0, 0, 1]
    assert natural.images.templates == imagenet.test.templates
    logits = torch.randn(2, 1000)
    assert torch.equal(natural.logits(logits), logits[:, [6, 9]])
    assert shifts["imagenet_sketch"].images.classes == names
    assert torch.equal(shifts["imagenet_sketch"].logits(logits), logits)
    assert not set(NOT_READ) & set(NATURAL)


def test_imagenet_v2_has_the_references_classes_by_number(imagenet, tmp_path):
    v2 = tmp_path / "imagenetv2-matched-frequency-format-val"
    put(v2, *(f"{number}/a.png" for number in range(1000)))
    (shift,) = natural_shifts(tmp_path, imagenet)
    assert shift.name == "imagenetv2"
    place = {number: shift.images.samples.place(number).key for number in (2, 10, 999)}
    assert place == {2: "2/a.png", 10: "10/a.png", 999: "999/a.png"}
    assert shift.images.labels.tolist() == list(range(1000))
    assert shift.columns is None


def test_the_two_hundred_classes_of_a_and_r_are_in_timms_order(imagenet, tmp_path):
    for name, one in (("imagenet-a", "n01498041"), ("imagenet-r", "n01443537")):
        put(tmp_path / name, f"{one}/a.png")
    for shift, number in zip(natural_shifts(tmp_path, imagenet), (6, 1), strict=True):
        assert shift.columns == ((number,),)  # stingray and goldfish


def test_natural_shifts_of_another_reference_are_refused(reference, tmp_path):
    with pytest.raises(UserError, match="expected ImageNet's 1,000 classes .*; got 10 of digits"):
        natural_shifts(tmp_path, reference)


def test_folders_that_are_not_imagenets_are_refused(imagenet, tmp_path):
    put(tmp_path / "imagenet-r", f"{WNIDS[3]}/a.png", "n99999999/a.png")
    with pytest.raises(UserError, match="expected folders named by ImageNet's .*; got n99999999"):
        natural_shifts(tmp_path, imagenet)


@pytest.fixture
def objectnet(imagenet, tmp_path):
    """In the form of its archive, with the numbers of a few of ImageNet's classes."""
    names = ["analog clock", "banana", "digital clock", "backpack, back pack, knapsack"]
    root = tmp_path / "objectnet-1.0"
    put(root / "images", "t-shirt/z.png", "alarm_clock/a.png", "alarm_clock/b.png", "banana/a.png")
    put(root / "images", "air_freshener/a.png")
    (root / "mappings").mkdir()
    for name, table in {
        "folder_to_objectnet_label.json": {
            "banana": "Banana",
            "air_freshener": "Air freshener",
            "alarm_clock": "Alarm clock",
        },
        "objectnet_to_imagenet_1k.json": {
            "Alarm clock": "analog clock; digital clock",
            "Banana": "banana",
        },
        "pytorch_to_imagenet_2012_id.json": {"409": 0, "954": 1, "530": 2, "414": 3},
    }.items():
        (root / "mappings" / name).write_text(json.dumps(table))
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("\n".join(names) + "\n")
    return root


def test_objectnets_overlap_with_imagenet_is_read_from_its_own_tables(imagenet, objectnet):
    (shift,) = natural_shifts(objectnet.parent, imagenet)
    assert shift.images.classes == ("alarm clock", "banana")
    assert shift.columns == ((409, 530), (954,))
    names = imagenet.test.classes
    assert [names[c] for c in (409, 530, 954)] == ["analog clock", "digital clock", "banana"]
    keys = [shift.images.samples.place(n).key for n in range(len(shift.images.labels))]
    assert keys == ["alarm_clock/a.png", "alarm_clock/b.png", "banana/a.png"]
    assert shift.images.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("table", "content", "sentence"),
    [
        ("objectnet_to_imagenet_1k.json", None, "no such file; ObjectNet's archive has it"),
        ("folder_to_objectnet_label.json", "[1]", "expected a JSON object"),
        ("folder_to_objectnet_label.json", "{", "expected a JSON object"),
        ("folder_to_objectnet_label.json", "{}", "fit each other; 'Alarm clock' is in one alone"),
        ("objectnet_to_imagenet_1k.json", '{"Banana": "musa"}', "'musa' is in one alone"),
        ("pytorch_to_imagenet_2012_id.json", '{"1": 0}', "1 is in one alone"),
    ],
)
def test_what_is_wrong_with_objectnets_tables_is_named(
    imagenet, objectnet, table, content, sentence
):
    file = objectnet / "mappings" / table
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        natural_shifts(objectnet.parent, imagenet)
