"""Cleaning by short cuts gives the words that open_clip's cleaning gives."""

import random
import re
from itertools import pairwise, product
from re import _constants, _parser

import ftfy
import pytest
from caption_kinds import CONTROLS, GAPS, ODD, ORDINARY
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES, is_bad

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer")

from clipfast.data.text import mending  # noqa: E402
from clipfast.data.text.cleaning import lower_words, single_spaced  # noqa: E402
from clipfast.data.text.mending import fix_text  # noqa: E402

CONTEXTS = ["{}", "a{}b", " {} ", "é{}é", "“{}”", "В{}В", "{}\u0301\n&amp;<"]


def assert_cleaned_as_open_clips(text):
    # open_clip's pattern takes U+0345 for white space.
    lower = open_clip_tokenizer._clean_lower(text).replace("\u0345", " ").split()
    assert lower_words(text) == lower, repr(text)
    assert single_spaced(text) == open_clip_tokenizer._clean_whitespace(text), repr(text)


def assert_fixed_as_by_ftfy(text):
    assert fix_text(text).split() == ftfy.fix_text(text).split(), repr(text)


def test_printable_ascii_gets_open_clips_words():
    rng = random.Random(1)
    pieces = [*map(chr, range(0x20, 0x7F)), *" " * 20, *"&" * 6]
    pieces += ["& ", "&amp;", "amp;", "&lt", "#39;", "[0m"]
    ends = [*map(chr, range(0x21)), "\x7f", "\x85", "\u00a0", "\u2028", "\r\n", "& ", "&"]
    ends += [""] * len(ends)
    for _ in range(6_000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        assert_cleaned_as_open_clips(rng.choice(ends) + text + rng.choice(ends))


@pytest.mark.parametrize("line_break", ["", "\n", "\r\n"])
def test_mixes_of_entities_and_mis_decoded_words_get_open_clips_words(line_break):
    rng = random.Random(2)
    words = [
        *ORDINARY,
        *ODD * 3,
        *CONTROLS,
        *MIS_DECODED,
        *"“”’«»°×€½éÉöñŒœÃÂÐÙà",
        "&amp;amp;lt;",
        "<",
    ]
    for _ in range(2_000):
        text = "".join(rng.choice(words) + rng.choice(GAPS) for _ in range(rng.randint(1, 9)))
        assert_cleaned_as_open_clips(text.replace(" ", line_break, 2) if line_break else text)


def mis_decoded(text, encoding):
    return text.encode().decode(encoding, errors="ignore")


MIS_DECODED = [
    mis_decoded(text, encoding)
    for text in ("été", "“quoted” – l’eau…", "Привет", "à la", "½ €", "日本", "Ωμέγα", "©®™")
    for encoding in ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "mac_roman", "cp437")
]


@pytest.mark.parametrize("text", MIS_DECODED)
def test_mis_decoded_text_is_mended(text):
    for context in ("{}", "x {} y", "“{}”", "{}\n{}"):
        assert_cleaned_as_open_clips(context.format(text, text))


def test_code_points_in_places_where_ftfy_looks_are_fixed_as_by_ftfy():
    points = [*range(0x80, 0x250), *range(0x250, 0x110000, 997), *range(0x2010, 0x2040)]
    for point, context in product(points, CONTEXTS):
        assert_fixed_as_by_ftfy(context.format(chr(point)))


@pytest.mark.slow
def test_every_code_point_in_places_where_ftfy_looks_is_fixed_as_by_ftfy():
    for point, context in product([*range(0x10000), *range(0x10000, 0x110000, 17)], CONTEXTS):
        assert_fixed_as_by_ftfy(context.format(chr(point)))


@pytest.mark.slow
def test_pairs_of_characters_that_ftfy_knows_are_fixed_as_by_ftfy():
    known = re.compile("[" + "".join(MOJIBAKE_CATEGORIES.values()) + "]")
    characters = [*filter(known.match, map(chr, range(0x80, 0x10000))), "A", "z", " ", "1", "é"]
    rng = random.Random(3)
    for pair in product(characters, characters):
        assert_fixed_as_by_ftfy(
            rng.choice(["{}", "a{}b", " {} ", "В{}", "{}Ù"]).format("".join(pair))
        )


def test_a_line_that_ftfy_would_cut_is_left_to_it():
    cut = "x" * 999_999 + "e\u0301"
    assert fix_text(cut) == ftfy.fix_text(cut)
    assert not fix_text(cut).endswith("\u00e9")


def test_whatever_ftfy_takes_for_mis_decoded_is_looked_at():
    """Each alternative of its pattern needs a character, or a pair, that our pattern finds."""
    ((kind, (_, alternatives)),) = _parser.parse(BADNESS_RE.pattern, re.VERBOSE)
    assert kind is _constants.BRANCH
    assert len(alternatives) > 30
    for alternative in alternatives:
        places = [characters(*place) for place in alternative]
        pairs = [{x + y for x in first for y in second} for first, second in pairwise(places)]
        needed = [strings for strings in places + pairs if strings]
        assert any(all(map(mending._MAY_BE_BAD.search, strings)) for strings in needed), alternative


def characters(kind, value):
    """What a place of a pattern must be; none where it may be absent or is not a plain list."""
    if kind is _constants.LITERAL:
        return {chr(value)}
    found = set()
    for part, detail in value if kind is _constants.IN else ():
        if part is _constants.LITERAL:
            found.add(chr(detail))
        elif part is _constants.RANGE:
            found.update(map(chr, range(detail[0], detail[1] + 1)))
        else:
            return set()
    return found


def test_ordinary_letters_and_punctuation_are_not_even_looked_at():
    for text in ("l’été à Köln…", "“quoted” – 20°C", "привет мир", "日本の猫", "½ × 3 €", "🦄 ok"):
        assert not mending._MAY_BE_BAD.search(text)
        assert not is_bad(text)
