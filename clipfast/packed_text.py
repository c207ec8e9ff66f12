"""Captions without padding, the form in which text travels from tokenizer to pooled feature.

Shapes: B captions, L context length, T tokens of all captions together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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


def pack_ids(captions: Sequence[Sequence[int]]) -> PackedText:
    """Lays token-id lists end to end."""
    lengths = torch.tensor([0, *map(len, captions)], dtype=torch.int32)
    tokens = torch.tensor([i for ids in captions for i in ids], dtype=torch.int64)
    return PackedText(tokens, lengths.cumsum(0, dtype=torch.int32))


def pack_padded(text: Tensor) -> PackedText:
    """Drops everything after each row's end-of-text token, which is the row's largest id.

    Args:
        text: (B, L) integer ids, zero-padded, as `tokenize` and open_clip's tokenizer give.
    """
    end = text.argmax(dim=-1)
    kept = torch.arange(text.shape[1], device=text.device) <= end[:, None]
    cu_seqlens = torch.zeros(text.shape[0] + 1, dtype=torch.int32, device=text.device)
    cu_seqlens[1:] = (end + 1).cumsum(0)
    return PackedText(text[kept].long(), cu_seqlens)
