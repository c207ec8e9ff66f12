"""`tokenize` against open_clip's own tokenizer, for each engine."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from caption_kinds import ODD, ORDINARY, make_captions

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer")

from clipfast.data.text import tokenizer as subject  # noqa: E402
from clipfast.data.text.tokenizer import Tokenizer, tokenize  # noqa: E402
from clipfast.errors import UserError  # noqa: E402

START, END = 49406, 49407


@pytest.fixture(scope="module")
def reference():
    return open_clip_tokenizer.SimpleTokenizer()


@pytest.fixture(scope="module")
def corpus(reference):
    captions = make_captions(0.25)
    return captions, reference(captions)


@pytest.fixture(scope="module", params=["instant", "merges"])
def tokenizer(request):
    if request.param == "merges":
        engine = subject.merges_engine_if_installed()
        assert engine is not None
        return Tokenizer(engine)
    pytest.importorskip("instant_clip_tokenizer")
    return Tokenizer(subject.InstantEngine())


def assert_same_ids(ids, expected, captions):
    assert ids.dtype == torch.int64
    assert ids.shape == expected.shape
    wrong = (ids != expected).any(dim=1).nonzero().flatten().tolist()
    assert not wrong, f"{len(wrong)} captions differ, the first: {captions[wrong[0]]!r}"


def test_generated_captions_get_open_clips_ids(tokenizer, corpus):
    captions, expected = corpus
    assert len(captions) > 5_000
    assert_same_ids(tokenizer(captions), expected, captions)


@pytest.mark.slow
def test_many_more_generated_captions_get_open_clips_ids(tokenizer, reference):
    captions = make_captions(2)
    assert_same_ids(tokenizer(captions), reference(captions), captions)


@pytest.mark.parametrize("context_length", [2, 3, 4, 16, 200])
def test_captions_are_cut_and_padded_as_open_clips_at_other_lengths(
    tokenizer, reference, context_length
):
    captions = [*ORDINARY, *ODD, *make_captions(0.02)[-100:]]
    expected = reference(captions, context_length)
    assert_same_ids(tokenizer(captions, context_length), expected, captions)


@pytest.fixture(scope="module")
def code_points(reference):
    points = [*range(0x600), *range(0x1E00, 0x2200), *range(0x600, 0x110000, 331)]
    captions = [f"a{chr(p)}b {chr(p)} '{chr(p)}" for p in points]
    return captions, reference(captions, 32)


def test_every_kind_of_code_point_gets_open_clips_ids(tokenizer, code_points):
    captions, expected = code_points
    assert_same_ids(tokenizer(captions, 32), expected, captions)


@pytest.mark.parametrize("end_tokens_name", [True, False])
def test_packed_captions_are_open_clips_ids_without_padding(tokenizer, corpus, end_tokens_name):
    captions, expected = corpus
    if not end_tokens_name:
        once = ((expected == END).sum(dim=1) == 1).nonzero().flatten().tolist()
        captions, expected = [captions[i] for i in once], expected[once]
    packed = tokenizer.packed(captions)
    assert packed.tokens.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32
    rows = [row[: row.index(END) + 1] for row in expected.tolist()]
    assert packed.cu_seqlens.tolist() == [0, *np.cumsum([len(row) for row in rows]).tolist()]
    assert packed.tokens.tolist() == [i for row in rows for i in row]


def test_threads_share_it(corpus):
    captions, expected = corpus
    fresh = Tokenizer(subject.choose_engine())
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(fresh, [captions] * 4):
            assert_same_ids(ids, expected, captions)


@pytest.mark.parametrize(
    ("caption", "inner"),
    [
        ("Hi there", [1883, 997]),
        ("Hello world!!!", [3306, 1002, 995]),
        ("a person riding a motorcycle", [320, 2533, 6765, 320, 10297]),
    ],
)
def test_published_ids_are_reproduced(tokenizer, caption, inner):
    row = tokenizer(caption)[0].tolist()
    assert row == [START, *inner, END] + [0] * (75 - len(inner))


def test_instant_encodes_letters_newer_than_python_without_open_clip(monkeypatch):
    pytest.importorskip("instant_clip_tokenizer")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    subject.merges_engine_if_installed.cache_clear()
    try:
        row = Tokenizer(subject.InstantEngine())("\U0002ebf0 dog")[0].tolist()
    finally:
        subject.merges_engine_if_installed.cache_clear()
    dog = 1929
    assert row[row.index(END) - 1] == dog


def test_a_string_tuple_generator_or_array_is_read_like_a_list():
    expected = tokenize(["a dog", "a cat"])
    assert torch.equal(tokenize(("a dog", "a cat")), expected)
    assert torch.equal(tokenize(caption for caption in ("a dog", "a cat")), expected)
    assert torch.equal(tokenize(np.array(["a dog", "a cat"])), expected)
    assert torch.equal(tokenize("a dog"), expected[:1])


def test_no_captions_give_an_empty_batch_as_open_clip_does(tokenizer, reference):
    assert tokenizer([]).shape == reference([]).shape == (0, 77)
    packed = tokenize([], packed=True)
    assert packed.tokens.shape == (0,)
    assert packed.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts: expected str or a sequence of str; got NoneType"),
        (7, "texts: expected str or a sequence of str; got int"),
        (["a dog", None], r"texts\[1\]: expected str; got NoneType"),
        ([["a dog"]], r"texts\[0\]: expected str; got list"),
        (b"a dog", r"texts\[0\]: expected str; got int"),
    ],
)
def test_a_caption_that_is_no_string_is_refused_by_position(texts, message):
    with pytest.raises(TypeError, match=message):
        tokenize(texts)


@pytest.mark.parametrize("context_length", [1, 0, -77])
def test_a_context_without_room_for_start_and_end_is_refused(context_length):
    with pytest.raises(
        ValueError, match=f"context_length: expected at least 2; got {context_length}"
    ):
        tokenize("a dog", context_length)


def test_missing_vocabulary_names_the_packages_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    subject.merges_engine_if_installed.cache_clear()
    try:
        with pytest.raises(UserError, match=r"pip install .* or open_clip_torch"):
            subject.choose_engine()
    finally:
        subject.merges_engine_if_installed.cache_clear()


def test_merges_engine_works_without_importing_open_clip(monkeypatch):
    monkeypatch.delitem(sys.modules, "open_clip")
    engine = subject.merges_engine_if_installed.__wrapped__()
    assert Tokenizer(engine)("a dog", 4).tolist() == [[START, 320, 1929, END]]
    assert "open_clip" not in sys.modules
