"""`tokenize` against open_clip's own tokenizer, for each engine."""

import random
import sys

import numpy as np
import pytest
import torch

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer")

from clipfast.data.text import tokenizer as subject  # noqa: E402
from clipfast.data.text.tokenizer import Tokenizer, tokenize  # noqa: E402
from clipfast.errors import UserError  # noqa: E402

START, END = 49406, 49407
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ORDINARY_TEXT = """
    a an the two three of on in at with and man woman child dog cat horse bicycle motorcycle photo
    riding standing sitting holding wearing red blue green yellow white black old young street beach
    kitchen table plate pizza sandwich umbrella skateboard airplane traffic light fire hydrant
    isn't it's they're we've I'm he'll she'd Rock 'n' don't U.S.A. e-mail 4K 1920x1080 #sunset @home
    www.example.com/index.html?q=1 $19.99 50% C++ (c) "quoted" -- ... !!! snake_case CamelCase
    <start_of_text> <end_of_text> x<end_of_text>y !<start_of_text> <START_OF_TEXT> <b>bold</b> & "
    pneumonoultramicroscopicsilicovolcanoconiosis donaudampfschifffahrtsgesellschaft"""
ODD_TEXT = """
    &amp; &lt;b&gt; &amp;amp; &quot; &#39; &#x1F600; &eacute; &nbsp; &#0; &#xD800; &copy &notit;
    &AMP; AT&T R&B &&amp;& caf\u00e9 cafe\u0301 na\u00efve Stra\u00dfe \u0130stanbul \u0131
    \u039f\u0394\u039f\u03a3 \u03a3 \u1fb3\u0345 \u03b1\u0345\u03b2 '\u0345s \u01c5 \ufb03 \ufb05
    \uff26\uff35\uff2c\uff2c '\u017f it'\u017fo 1'\u017f !'\u017f 's'\u017f \u017fo
    <\u017ftart_of_text> x<\u017ftart_of_text>'\u017fy <end_of_text>'\u017f \u2019s we\u2019ll
    \u201cquote\u201d \u2013 \u2014 \u2026 \u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u2122s
    \u00c3\u00a2\u00e2\u201a\u00ac\u00e2\u201e\u00a2 &#64261; &#837; x&#x345;y
    \u00bd \u2167 \u2460 \u00b2 \u0663 \u0967 \u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4
    \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639
    \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \U0001f600 \U0001f468\u200d\U0001f469
    \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3 \U0001fae9 \ufffd \ufeff
    \ua7cb \U00010d40 \U000105c0x x\U0002ebf0 \U0010ffff \ue000 \u0378"""
ORDINARY, ODD = ORDINARY_TEXT.split(), ODD_TEXT.split()
GAPS = [" "] * 12 + ["  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", ""]
CONTROLS = ["\0", "\x07", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x85", "\x93", "\ud800", "\udc00"]
BLOCKS = [0x80, 0x100, 0x250, 0x300, 0x370, 0x400, 0x590, 0x600, 0x900, 0xE00, 0x1100, 0x1E00]
BLOCKS += [0x1F00, 0x2000, 0x2100, 0x2460, 0x2600, 0x3040, 0x4E00, 0xAC00, 0xFB00, 0xFF00, 0x1D400]
BLOCKS += [0x1F300]


def make_captions() -> list[str]:
    rng = random.Random(0)
    captions = ["", " ", "\n", "\0", "&nbsp;", "\x85hello", "\x1chi\x1f", "a\x1cb", "\u3000a\u00a0"]
    captions += [*ORDINARY, *ODD, "!" * 200, "x" * 10_000, "word " * 2_000, "\u4e2d" * 3_000]

    def mix(words: list[str], n: int) -> str:
        return "".join(rng.choice(words) + rng.choice(GAPS) for _ in range(n))

    for _ in range(8_000):
        captions.append(" ".join(rng.choices(ORDINARY, k=rng.randint(1, 16))).capitalize())
    for _ in range(3_000):  # letters that make no words, so the merges rather than whole words
        captions.append(
            " ".join("".join(rng.choices(LETTERS, k=rng.randint(1, 12))) for _ in range(9))
        )
    for _ in range(3_000):
        captions.append(mix(ORDINARY + ODD, rng.randint(1, 14)))
    for _ in range(3_000):
        captions.append(mix(ORDINARY + ODD + CONTROLS, rng.randint(1, 8)))
    for _ in range(3_000):
        first = rng.choice(BLOCKS)
        captions.append("".join(chr(first + rng.randrange(128)) for _ in range(rng.randint(1, 24))))
    for _ in range(1_000):
        chars = (rng.randrange(0x20000) for _ in range(rng.randint(1, 24)))
        captions.append("".join(map(chr, chars)))
    for _ in range(300):
        captions.append(mix(ORDINARY + ODD, rng.randint(40, 120)))
    return captions


@pytest.fixture(scope="module")
def reference():
    return open_clip_tokenizer.SimpleTokenizer()


@pytest.fixture(scope="module")
def corpus(reference):
    captions = make_captions()
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
    assert len(captions) > 20_000
    assert_same_ids(tokenizer(captions), expected, captions)


@pytest.mark.parametrize("context_length", [2, 3, 4, 16, 200])
def test_captions_are_cut_and_padded_as_open_clips_at_other_lengths(
    tokenizer, reference, context_length
):
    captions = [*ORDINARY, *ODD, *make_captions()[-100:]]
    expected = reference(captions, context_length)
    assert_same_ids(tokenizer(captions, context_length), expected, captions)


@pytest.fixture(scope="module")
def code_points(reference):
    points = [*range(0x3100), *range(0x3100, 0x110000, 331)]
    captions = [f"a{chr(p)}b {chr(p)} '{chr(p)}" for p in points]
    return captions, reference(captions, 32)


def test_every_kind_of_code_point_gets_open_clips_ids(tokenizer, code_points):
    captions, expected = code_points
    assert_same_ids(tokenizer(captions, 32), expected, captions)


def test_packed_captions_are_open_clips_ids_without_padding(corpus):
    captions, expected = corpus
    packed = tokenize(captions, packed=True)
    assert packed.tokens.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32
    rows = [row[: row.index(END) + 1] for row in expected.tolist()]
    assert packed.cu_seqlens.tolist() == [0, *np.cumsum([len(row) for row in rows]).tolist()]
    assert packed.tokens.tolist() == [i for row in rows for i in row]


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


def test_short_cut_of_clean_gives_the_words_of_full_cleaning():
    rng = random.Random(1)
    pieces = [*map(chr, range(0x20, 0x7F)), *" " * 20, *"&" * 6]
    pieces += ["& ", "&amp;", "amp;", "&lt", "#39;", "[0m"]
    ends = [*map(chr, range(0x21)), "\x7f", "\x85", "\u00a0", "\u2028", "\r\n", "& ", "&"]
    ends += [""] * len(ends)
    n_short_cuts = 0
    for _ in range(15_000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        text = rng.choice(ends) + text + rng.choice(ends)
        cleaned = subject.clean(text)
        assert cleaned.lower().split() == open_clip_tokenizer._clean_lower(text).split(), repr(text)
        n_short_cuts += cleaned != cleaned.lower()  # only the short cut leaves the case
    assert n_short_cuts > 2_000


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
    assert engine(["a dog"], 4).tolist() == [[START, 320, 1929, END]]
    assert "open_clip" not in sys.modules
