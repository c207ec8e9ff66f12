"""Captions without padding, the form in which text travels from tokenizer to pooled feature.

Shapes: B captions, L context length, T tokens of all captions together, U of them shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Other = TypeVar("Other")

_NO_TOKEN = -1


class PackedText(NamedTuple):
    """B captions laid end to end; caption b is ``tokens[cu_seqlens[b]:cu_seqlens[b + 1]]``, from
    its start id to its end id.

    Attributes:
        tokens: (T,) int64.
        cu_seqlens: (B + 1,) int32, from 0 to T (flash-attn's varlen convention).
    """

    tokens: Tensor
    cu_seqlens: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedText:
        return PackedText(*(t.to(device, non_blocking=non_blocking) for t in self))

    def rows(self, begin: int, end: int) -> PackedText:
        """The captions from `begin` up to `end`."""
        ends = self.cu_seqlens[begin : end + 1]
        return PackedText(self.tokens[int(ends[0]) : int(ends[-1])], ends - ends[0])

    def take(self, captions: Tensor) -> PackedText:
        """Those captions, in their order."""
        lengths = self.cu_seqlens.diff()[captions]
        cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])
        shift = self.cu_seqlens[captions] - cu_seqlens[:-1]
        place = shift.repeat_interleave(lengths)
        return PackedText(
            self.tokens[place + torch.arange(len(place), device=place.device)], cu_seqlens
        )


class SharedText(NamedTuple):
    """B captions whose common beginnings are held once. A causal tower computes the same for a
    token wherever the same tokens are before it.

    Attributes:
        tokens: (U,) int64.
        cu_fresh: (B + 1,) int32, from 0 to U; ``tokens[cu_fresh[b]:cu_fresh[b + 1]]`` end caption
            b, and what they follow another caption has.
        paths: the captions, each token being its place in `tokens`.
    """

    tokens: Tensor
    cu_fresh: Tensor
    paths: PackedText

    def to(self, device: torch.device | str) -> SharedText:
        return SharedText(self.tokens.to(device), self.cu_fresh.to(device), self.paths.to(device))

    def packed(self) -> PackedText:
        """As they are without sharing."""
        return PackedText(self.tokens[self.paths.tokens], self.paths.cu_seqlens)


def share_beginnings(text: PackedText) -> SharedText:
    """Holds what a caption has in common with the one before it once: with captions in
    `lexical_order` that is every distinct beginning.

    Args:
        text: on the CPU; one caption or more.
    """
    lengths = text.cu_seqlens.diff().numpy()
    rows = pad_packed(text, int(lengths.max()), _NO_TOKEN).numpy()
    alike = (rows[1:] == rows[:-1]) & (rows[1:] != _NO_TOKEN)
    shared = np.zeros_like(lengths)
    shared[1:] = np.logical_and.accumulate(alike, axis=1).sum(axis=1)
    fresh_BL = (np.arange(rows.shape[1]) >= shared[:, None]) & (rows != _NO_TOKEN)
    places_BL = np.zeros_like(rows)
    places_BL[fresh_BL] = np.arange(fresh_BL.sum())
    # Places rise from caption to caption, so the last one above a shared token is the largest.
    np.maximum.accumulate(places_BL, axis=0, out=places_BL)
    cu_fresh = np.concatenate([[0], (lengths - shared).cumsum()])
    return SharedText(
        torch.from_numpy(rows[fresh_BL]),
        torch.from_numpy(cu_fresh.astype(np.int32)),
        PackedText(torch.from_numpy(places_BL[rows != _NO_TOKEN]), text.cu_seqlens),
    )


def unshared(text: Other | SharedText) -> Other | PackedText:
    """What a tower takes that computes every token of every caption."""
    return text.packed() if isinstance(text, SharedText) else text


def lexical_order(text: PackedText) -> Tensor:
    """(B,) int64: captions sorted by their first token, then their second, … On the CPU."""
    rows = pad_packed(text, int(text.cu_seqlens.diff().max()), _NO_TOKEN)
    return torch.from_numpy(np.lexsort(rows.numpy().T[::-1]))


def pack_ids(captions: Sequence[Sequence[int]]) -> PackedText:
    """Lays token-id lists end to end."""
    lengths = torch.tensor([0, *map(len, captions)], dtype=torch.int32)
    tokens = torch.tensor([i for ids in captions for i in ids], dtype=torch.int64)
    return PackedText(tokens, lengths.cumsum(0, dtype=torch.int32))


def pack_padded(text: Tensor, ends: Tensor | None = None) -> PackedText:
    """Drops everything after each row's last token.

    Args:
        text: (B, L) integer ids, as `tokenize` and open_clip's tokenizer give.
        ends: (B,) the place of each row's last token; None is the place of its largest id, the
            end-of-text token.
    """
    ends = text.argmax(dim=-1) if ends is None else ends
    kept = torch.arange(text.shape[1], device=text.device) <= ends[:, None]
    cu_seqlens = torch.zeros(text.shape[0] + 1, dtype=torch.int32, device=text.device)
    cu_seqlens[1:] = (ends + 1).cumsum(0)
    return PackedText(text[kept].long(), cu_seqlens)


def pad_packed(text: PackedText, context_length: int, pad_id: int = 0) -> Tensor:
    """(B, L) int64, `pad_id` behind each caption; with zeros, what `pack_padded` packs."""
    return pad_rows(text.tokens, token_places(text.cu_seqlens, context_length), pad_id)


def token_places(cu_seqlens: Tensor, length: int) -> Tensor:
    """(B, L) bool: where captions laid in rows of L = `length` have tokens."""
    place = torch.arange(length, device=cu_seqlens.device)
    return place < cu_seqlens.diff()[:, None]


def pad_rows(rows: Tensor, places: Tensor, fill: float) -> Tensor:
    """(T, …) -> (B, L, …): the rows in their order at the T `places` (B, L), `fill` elsewhere."""
    padded = rows.new_full((*places.shape, *rows.shape[1:]), fill)
    padded[places] = rows
    return padded


def check_padded(text: Tensor) -> None:
    """Raises:
    ValueError: text is not (B, L) ids of at least a caption and a token.
    """
    if text.ndim != 2 or 0 in text.shape or text.is_floating_point():
        raise ValueError(
            "text: expected PackedText or integer ids (B, L), B and L ≥ 1; "
            f"got {text.dtype} {tuple(text.shape)}"
        )


def check_packed(text: PackedText | SharedText, context_length: int) -> int:
    """The longest caption's tokens.

    Raises:
        ValueError: no caption, cu_seqlens that do not run from 0 to the number of tokens, or a
            caption that is empty or longer than the context.
    """
    if isinstance(text, SharedText):
        text = text.paths
    ends = text.cu_seqlens
    if ends.ndim != 1 or len(ends) < 2:
        raise ValueError(
            "text: expected cu_seqlens of shape (B + 1,), B ≥ 1 captions; "
            f"got shape {tuple(ends.shape)}"
        )
    lengths = ends.diff()
    # Together, because each value read from a GPU waits for it.
    first, last, shortest, longest = torch.stack(
        [ends[0], ends[-1], lengths.min(), lengths.max()]
    ).tolist()
    if (first, last) != (0, len(text.tokens)):
        raise ValueError(
            f"text: expected cu_seqlens from 0 to {len(text.tokens)}, the number of tokens; "
            f"got {first} to {last}"
        )
    if shortest < 1 or longest > context_length:
        raise ValueError(
            f"text: expected captions of 1 to {context_length} tokens; got {shortest} to {longest}"
        )
    return int(longest)
