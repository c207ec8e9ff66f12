"""A sample's captions become the one that is shown, or a reason why there is none."""

import json
from random import Random

import pytest

from clipfast.data.sources.samples import UnusableError
from clipfast.data.text.captions import CaptionReader

read = CaptionReader()


@pytest.mark.parametrize(
    "text",
    [
        "a dog",
        "  zwei Hunde\nauf einer Wiese ",
        "[sic] a dog",
        "{unfinished",
        '"quoted"',
        "7",
        "[" * 100_000,
    ],
)
def test_a_text_is_shown_as_it_is(text):
    assert read([text.encode()], Random(0)) == text


@pytest.mark.parametrize(
    "document",
    [
        {"caption": "a dog", "title": "no"},
        {"captions": ["a dog"]},
        {"text": "a dog", "url": "https://x"},
        ["a dog"],
        ["", "  ", "a dog"],
    ],
)
def test_a_json_document_shows_its_caption(document):
    assert read([json.dumps(document).encode()], None) == "a dog"


def test_a_byte_order_mark_hides_no_document():
    assert read(['\ufeff {"caption": "a dog"}'.encode()], None) == "a dog"
    assert read(["\ufeffa dog".encode()], None) == "\ufeffa dog"  # cleaning takes it off


def test_the_field_that_was_asked_for_is_shown():
    document = json.dumps({"caption": "an alt text", "blip": "a dog"}).encode()
    assert CaptionReader("blip")([document], None) == "a dog"
    for text in ("a plain text", "[sic] a dog"):
        assert CaptionReader("blip")([text.encode()], None) == text


@pytest.mark.parametrize(
    "stored",
    [
        [b"one", b"two", b"three"],
        [json.dumps(["one", "two", "three"]).encode()],
        [json.dumps({"captions": ["one", "two"]}).encode(), b" ", b"three"],
    ],
)
def test_each_of_several_captions_is_chosen_as_often_as_the_others(stored):
    chosen = [read(stored, Random(seed)) for seed in range(600)]
    assert chosen == [read(stored, Random(seed)) for seed in range(600)]
    for caption in ("one", "two", "three"):
        assert 150 < chosen.count(caption) < 250
    assert read(stored, None) == "one"


@pytest.mark.parametrize(
    ("stored", "key", "reason"),
    [
        ([], None, "no caption"),
        ([b""], None, "empty caption"),
        ([b" \n\t "], None, "empty caption"),
        ([b'["", " "]'], None, "empty caption"),
        ([b"[]"], None, "no caption"),
        ([b"caf\xe9"], None, "caption is not UTF-8"),
        ([b'{"url": "x"}'], None, r"the field caption or captions or .*; got url"),
        ([b'{"caption": "x"}'], "blip", r"the field blip in .* \(--caption-key\); got caption"),
        ([b"{}"], None, "got none"),
        ([b'{"blip": "cut'], "blip", r"JSON with the field blip \(--caption-key\).*; Unterminated"),
        ([b'{"caption": 7}'], None, "a text or a list of texts as caption; got int"),
        ([b'{"caption": null}'], None, "got NoneType"),
        ([b'["a", ["b"]]'], None, "got list"),
    ],
)
def test_what_cannot_be_shown_has_a_reason(stored, key, reason):
    with pytest.raises(UnusableError, match=reason):
        CaptionReader(key)(stored, None)
