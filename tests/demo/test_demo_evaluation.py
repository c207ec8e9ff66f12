"""The demo's folder as a set to evaluate."""

import json

import numpy as np
import pytest

from clipfast.demo.dataset import DigitShards
from clipfast.demo.digits import DIGIT_WORDS, UNSEEN, sentences
from clipfast.demo.evaluation import TEMPLATES, demo_shifts, open_demo
from clipfast.errors import UserError


def words_of(images):
    """The digits that the captions say."""
    for number in range(len(images.labels)):
        caption = images.samples.read(number).captions[0].decode().replace(",", "").split()
        yield next(d for d, word in enumerate(DIGIT_WORDS) if word in caption or str(d) in caption)


def test_labels_are_what_the_captions_say_in_every_split(digit_shards):
    demo = open_demo(digit_shards.folder)
    (unseen,) = demo_shifts(digit_shards.folder)
    for images, count in ((demo.train, 96), (demo.test, 1440), (unseen.images, 1440)):
        assert images.classes == tuple(DIGIT_WORDS)
        assert len(images.samples) == len(images.labels) == count
        assert images.labels.tolist() == list(words_of(images))


def test_the_shift_is_of_inks_that_training_did_not_show(digit_shards):
    (unseen,) = demo_shifts(digit_shards.folder)
    assert (unseen.name, unseen.columns, unseen.corruption) == ("unseen_combination", None, None)
    for number in range(0, 1440, 20):
        caption = unseen.images.samples.read(number).captions[0].decode()
        digit = int(unseen.images.labels[number])
        assert any(ink in caption for d, ink in UNSEEN if d == digit)


def test_sentences_are_the_demos_own():
    for digit, word in enumerate(DIGIT_WORDS):
        said = {template.replace("{}", word) for template in TEMPLATES}
        assert len(said) == len(TEMPLATES)
        assert said == {s for s in sentences(digit=digit) if word in s.replace(",", "").split()}


def test_the_demos_output_folder_is_as_good_as_its_data(digit_shards, tmp_path):
    (tmp_path / "data").symlink_to(digit_shards.folder)
    outer, inner = open_demo(tmp_path), open_demo(digit_shards.folder)
    assert np.array_equal(outer.train.labels, inner.train.labels)
    assert len(demo_shifts(tmp_path)) == 1


def test_a_folder_without_digits_or_with_half_of_them_is_refused(tmp_path):
    refused = pytest.raises(UserError, match="expected the digits of clipfast demo; got no digits")
    with refused:
        open_demo(tmp_path)
    with refused:
        demo_shifts(tmp_path / "nowhere")
    shards = DigitShards(tmp_path / "x", pairs=32, image_size=16).make()
    manifest = shards.folder / "digits.json"
    content = json.loads(manifest.read_text())
    for other in ({**content, "format": 1}, {**content, "pairs": {}}, [], "x"):
        manifest.write_text(json.dumps(other))
        with refused:
            open_demo(shards.folder)
    manifest.write_text("{")
    with refused:
        open_demo(shards.folder)
    manifest.rename(shards.folder / "digits.unfinished.json")
    with refused:
        open_demo(shards.folder)
