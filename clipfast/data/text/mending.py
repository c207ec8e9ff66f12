"""`ftfy.fix_text`, most of whose work is for nothing on most captions.

ftfy tries many fixes in turn, and all of them again until none changes the text. Which of them can
change a text at all shows in its characters.
"""

from __future__ import annotations

import re
import unicodedata

import ftfy
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from ftfy.chardata import (
    CONTROL_CHARS,
    DOUBLE_QUOTE_RE,
    LIGATURES,
    SINGLE_QUOTE_RE,
    WIDTH_MAP,
)
from ftfy.fixes import uncurl_quotes, unescape_html

# ftfy takes a text for mis-decoded if it has some of these characters in certain places. No other
# character is enough for that by itself, and no pair of others is.
_NOISY = "".join(
    MOJIBAKE_CATEGORIES.get(category, "")
    for category in (
        *("c1", "bad", "law", "currency", "start_punctuation", "end_punctuation", "numeric"),
        *("upper_accented", "box"),
    )
)
# "Ù" and "Ђ" are in categories with what is common; "â" to "ó" follow "‚", which is noisy.
_NOISY += "°ÙЂ"
_MAY_BE_BAD = re.compile(rf"[\x80-\x9fŒœÃÂ]|[{_NOISY}][^\x00-\x7f]|[^\x00-\x7f][{_NOISY}]")
# What the fixes change by themselves, but for quotes and line breaks.
_CHANGED = "".join(map(chr, {**CONTROL_CHARS, **LIGATURES, **WIDTH_MAP}))
_CHANGES = re.compile(f"[{re.escape(_CHANGED)}\x85\u2028\u2029\ud800-\udfff]")
_QUOTES = re.compile(f"{SINGLE_QUOTE_RE.pattern}|{DOUBLE_QUOTE_RE.pattern}")
# ftfy cuts longer lines in pieces.
_LONGEST_LINE = 1_000_000


def fix_text(text: str) -> str:
    """ftfy's, but for which white space is where."""
    unescape = True
    fixed = []
    for line in _lines(text):
        unescape = unescape and "<" not in line  # from there on it is HTML
        mended = _fix_line(line, unescape)
        if mended is None:
            whole: str = ftfy.fix_text(text)
            return whole
        fixed.append(mended)
    return "".join(fixed)


def _lines(text: str) -> list[str]:
    if "\n" not in text:
        return [text]
    *lines, last = text.split("\n")
    return [*(line + "\n" for line in lines), last]


def _fix_line(line: str, unescape: bool) -> str | None:
    """None if it needs more than entities, quotes and composed letters."""
    if len(line) > _LONGEST_LINE:
        return None
    while True:
        before = line
        if unescape and "&" in line:
            line = unescape_html(line)
        if _CHANGES.search(line) or (_MAY_BE_BAD.search(line) and is_bad(line)):
            return None
        if not line.isascii():
            quotes = _QUOTES.search(line)
            line = unicodedata.normalize("NFC", uncurl_quotes(line) if quotes else line)
        if line == before:
            return line
