"""Captions to CLIP token ids: exactly open_clip's, many times faster.

No token spans white space and captions repeat their words, so a word is encoded once, by one of two
engines, and then found in a cache.

Shapes: B captions, L context length, T tokens of all captions together.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.text.cleaning import lower_words
from clipfast.errors import UserError
from clipfast.packed_text import PackedText, pack_padded

Engine = Callable[[str], Sequence[int]]  # a word of lower case -> its ids
START_ID, END_ID = 49406, 49407
SPECIAL = {"<start_of_text>": START_ID, "<end_of_text>": END_ID}
N_MERGES = 48894

# U+017F, the long s, is an "s" where case is ignored, as open_clip's pattern does: that makes two
# tokens more. Their ids, and a pattern that finds them only where open_clip would begin a token.
LONG_S_TOKENS = {
    "'\u017f": [6, 129, 379],
    "<\u017ftart_of_text>": [27, 129, 123, 16707, 62, 684, 62, 18169, 285],
}
PIECES = re.compile("|".join([*SPECIAL, *LONG_S_TOKENS, r"[^\W_]+", r"[\W_]+"]))

CACHED_WORDS = 1 << 16
CACHED_CAPTION_LENGTH = 1000  # characters; much longer "words" would fill the memory


class InstantEngine:
    """Byte-pair encoding by instant-clip-tokenizer, which has the vocabulary compiled in.

    It differs from open_clip on two classes of words, which are treated apart:
    - with the tokens in `LONG_S_TOKENS`: their ids are put in;
    - with characters newer than Python's Unicode (14.0 in 3.11, 15.0 in 3.12; the engine's is
      15.0): the other engine takes them where open_clip is installed. Elsewhere they stay here;
      open_clip's own ids for such letters change with the version of its `regex`.
    """

    def __init__(self) -> None:
        from instant_clip_tokenizer import Tokenizer

        self._encode: Engine = Tokenizer().encode

    def __call__(self, word: str) -> Sequence[int]:
        if word.isascii():
            return self._encode(word)
        if not word.isprintable() and any(unicodedata.category(c) == "Cn" for c in word):
            return (merges_engine_if_installed() or self._encode)(word)
        if any(token in word for token in LONG_S_TOKENS):
            return list(self._encode_long_s(word))
        return self._encode(word)

    def _encode_long_s(self, word: str) -> Iterator[int]:
        plain = ""
        for piece in [*PIECES.findall(word), ""]:
            if piece and piece not in LONG_S_TOKENS:
                plain += piece
                continue
            yield from self._encode(plain)
            yield from LONG_S_TOKENS.get(piece, [])
            plain = ""


class Vocabulary(NamedTuple):
    """A visible stand-in for each byte, each token's id (without the two special ones), and the
    merges in their order."""

    symbols: dict[int, str]
    ids: dict[str, int]
    merges: list[tuple[str, str]]


def read_vocabulary(merges_file: Path) -> Vocabulary:
    lines = gzip.decompress(merges_file.read_bytes()).decode("utf-8").split("\n")
    merges = [(a, b) for a, b in map(str.split, lines[1 : N_MERGES + 1])]
    # The stand-in is the byte itself where that is visible, or a letter from U+0100 on.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    symbols = dict(zip([*visible, *hidden], map(chr, [*visible, *range(256, 324)]), strict=True))
    single = symbols.values()
    tokens = [*single, *(s + "</w>" for s in single), *(a + b for a, b in merges)]
    return Vocabulary(symbols, {token: i for i, token in enumerate(tokens)}, merges)


class MergesEngine:
    """Byte-pair encoding by `tokenizers`, from the merges that open_clip_torch carries.

    Words are split by `regex`, which open_clip_torch requires and splits by itself: the same
    Unicode tables.
    """

    def __init__(self, merges_file: Path) -> None:
        import regex  # type: ignore[import-untyped]
        from tokenizers.models import BPE

        self._symbols, ids, merges = read_vocabulary(merges_file)
        self._model = BPE(ids, merges, end_of_word_suffix="</w>")
        self._split = regex.compile(
            "|".join(SPECIAL) + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        ).findall

    def __call__(self, word: str) -> Sequence[int]:
        ids: list[int] = []
        for token in self._split(word):
            if token in SPECIAL:
                ids.append(SPECIAL[token])
            else:
                symbols = "".join(self._symbols[byte] for byte in token.encode("utf-8"))
                ids += [part.id for part in self._model.tokenize(symbols)]
        return ids


def merges_file_if_installed() -> Path | None:
    """The merges file of the installed open_clip, found without importing it."""
    spec = importlib.util.find_spec("open_clip")
    folders = (spec and spec.submodule_search_locations) or []
    files = (Path(folder) / "bpe_simple_vocab_16e6.txt.gz" for folder in folders)
    return next(filter(Path.is_file, files), None)


@cache
def merges_engine_if_installed() -> MergesEngine | None:
    file = merges_file_if_installed()
    return None if file is None else MergesEngine(file)


def choose_engine() -> Engine:
    """instant-clip-tokenizer where installed (no wheel for Python 3.13), else the merges."""
    try:
        return InstantEngine()
    except ImportError:
        engine = merges_engine_if_installed()
    if engine is None:
        raise UserError(
            "tokenize: expected a package with CLIP's vocabulary; got none: pip install "
            "instant-clip-tokenizer (Python < 3.13) or open_clip_torch"
        )
    return engine


class Tokenizer:
    """`tokenize` with an engine of one's choice; safe from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._encode_cached = lru_cache(CACHED_WORDS)(self._encode)

    def __call__(self, texts: str | Sequence[str], context_length: int = 77) -> Tensor:
        """(B, L) int64 ids."""
        return _pad(self._rows(texts, context_length), context_length)

    def packed(self, texts: str | Sequence[str], context_length: int = 77) -> PackedText:
        """Without padding."""
        rows = self._rows(texts, context_length)
        tokens = _as_ids(rows)
        if np.count_nonzero(tokens == END_ID) > len(rows):  # a caption has the end token's name
            return pack_padded(_pad(rows, context_length))
        cu_seqlens = np.zeros(len(rows) + 1, np.int32)
        np.cumsum([len(row) // _ID_BYTES for row in rows], out=cu_seqlens[1:])
        return PackedText(torch.from_numpy(tokens), torch.from_numpy(cu_seqlens))

    def _rows(self, texts: str | Sequence[str], context_length: int) -> list[bytes]:
        """Ids of each caption from start to end; longer captions are cut before the end."""
        if context_length < 2:
            raise ValueError(f"context_length: expected at least 2; got {context_length}")
        if not isinstance(texts, Iterable):
            raise TypeError(f"texts: expected str or a sequence of str; got {type(texts).__name__}")
        captions = [texts] if isinstance(texts, str) else list(texts)
        for i, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise TypeError(f"texts[{i}]: expected str; got {type(caption).__name__}")
        most = context_length - 2
        return [
            _START + self._encode_caption(caption, most)[: most * _ID_BYTES] + _END
            for caption in captions
        ]

    def _encode_caption(self, caption: str, most: int) -> bytes:
        """At least the first `most` ids: a word has one or more."""
        encode = self._encode_cached if len(caption) <= CACHED_CAPTION_LENGTH else self._encode
        return b"".join(map(encode, lower_words(caption)[:most]))

    def _encode(self, word: str) -> bytes:
        return _as_bytes(self._engine(word))


def _as_bytes(ids: Sequence[int]) -> bytes:
    return array("H", ids).tobytes()  # all ids fit in 16 bits, and bytes join faster than lists


_START, _END, _ID_BYTES = _as_bytes([START_ID]), _as_bytes([END_ID]), array("H").itemsize


def _as_ids(rows: Iterable[bytes]) -> NDArray[np.int64]:
    return np.frombuffer(b"".join(rows), dtype=np.uint16).astype(np.int64)


def _pad(rows: Iterable[bytes], context_length: int) -> Tensor:
    padded = (row.ljust(context_length * _ID_BYTES, b"\0") for row in rows)
    return torch.from_numpy(_as_ids(padded).reshape(-1, context_length))


@cache
def _default_tokenizer() -> Tokenizer:
    return Tokenizer(choose_engine())


@overload
def tokenize(
    texts: str | Sequence[str], context_length: int = 77, *, packed: Literal[False] = False
) -> Tensor: ...
@overload
def tokenize(
    texts: str | Sequence[str], context_length: int = 77, *, packed: Literal[True]
) -> PackedText: ...
def tokenize(
    texts: str | Sequence[str], context_length: int = 77, *, packed: bool = False
) -> Tensor | PackedText:
    """CLIP token ids of captions, equal to ``open_clip.get_tokenizer("ViT-B-32")(texts)``.

    Args:
        texts: one caption or B of them.
        context_length: L >= 2; a longer caption is cut, with the end id last.
        packed: without padding. A caption ends at its first end id, where CLIP pools it: what
            follows a literal "<end_of_text>" is left out too.
    Returns:
        (B, L) int64, zero after the end id; packed: tokens (T,) int64, cu_seqlens (B + 1,) int32.
    Raises:
        TypeError: a caption is not a string. ValueError: context_length < 2. UserError: no
        installed package carries CLIP's vocabulary.
    Source: Radford et al. 2021 (CLIP), section 2.4; Sennrich et al. 2016 (byte-pair encoding).
    """
    tokenizer = _default_tokenizer()
    return (tokenizer.packed if packed else tokenizer)(texts, context_length)
