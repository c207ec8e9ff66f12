"""What open_clip does with a caption before it is encoded."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import cache

_MAY_BE_ENTITY = re.compile(r"&[^ ]")


def lower_words(text: str) -> list[str]:
    """The words of open_clip's default cleaning, "lower"."""
    if _is_plain(text):
        return text.lower().split()
    # U+0345 is neither letter, digit nor symbol to open_clip's pattern, because that ignores case:
    # it separates words as a space does.
    return _mend(text).lower().replace("\u0345", " ").split()


def single_spaced(text: str) -> str:
    """open_clip's cleaning "whitespace"."""
    return " ".join((text if _is_plain(text) else _mend(text)).split())


def _is_plain(text: str) -> bool:
    """`_mend` changes nothing but white space at the ends, which `split` takes off.

    ftfy and html.unescape change printable ASCII only at an HTML entity, which is an ampersand with
    no space after it.
    """
    bare = text.strip()
    return (
        text.isascii() and bare.isprintable() and not ("&" in bare and _MAY_BE_ENTITY.search(bare))
    )


def _mend(text: str) -> str:
    """Without mis-decoded characters and HTML entities; white space may differ."""
    return html.unescape(html.unescape(_fix_text()(text)))


@cache
def _fix_text() -> Callable[[str], str]:
    from clipfast.data.text.mending import fix_text  # loads ftfy, which plain captions never need

    return fix_text
