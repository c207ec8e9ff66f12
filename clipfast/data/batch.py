"""One training batch, and how the parts that threads made become one.

B samples, S the model's image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.feature_cache import Found
from clipfast.packed_text import PackedText, pack_ids


class Batch(NamedTuple):
    """Attributes:
    images: (B, 3, S, S) uint8, or of those samples alone that `image_found` lacks.
    text: B captions, packed or (B, L), or of those samples alone that `text_found` lacks.
    numbers: (B,) int64, which samples these are.
    image_found, text_found: what the caches have; None without a cache.
    """

    images: Tensor
    text: PackedText | Tensor
    numbers: NDArray[np.int64]
    image_found: Found | None = None
    text_found: Found | None = None

    @property
    def samples(self) -> int:
        return len(self.numbers)

    def split(self, parts: int) -> list[Batch]:
        """Equal parts, in order; their number divides the samples'."""
        size = self.samples // parts
        return [self._rows(begin, begin + size) for begin in range(0, self.samples, size)]

    def _rows(self, begin: int, end: int) -> Batch:
        image_begin, image_end, image_found = _computed(self.image_found, begin, end)
        text_begin, text_end, text_found = _computed(self.text_found, begin, end)
        return Batch(
            self.images[image_begin:image_end],
            self.text[text_begin:text_end]
            if isinstance(self.text, Tensor)
            else self.text.rows(text_begin, text_end),
            self.numbers[begin:end],
            image_found,
            text_found,
        )


def _computed(found: Found | None, begin: int, end: int) -> tuple[int, int, Found | None]:
    """Which of the rows to compute belong to the samples from `begin` to `end`."""
    if found is None:
        return begin, end, None
    first, last = np.searchsorted(found.missing, [begin, end])
    rows = Found(found.features[begin:end], found.missing[first:last] - begin)
    return int(first), int(last), rows


def join_text(parts: Sequence[PackedText | Tensor]) -> PackedText | Tensor:
    """The captions of all parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    padded = [part for part in parts if isinstance(part, Tensor)]
    if padded:
        return torch.cat(padded)
    packed = [part for part in parts if isinstance(part, PackedText)]
    if not packed:
        return pack_ids([])
    lengths = torch.cat([part.cu_seqlens.diff() for part in packed])
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return PackedText(torch.cat([part.tokens for part in packed]), cu_seqlens)
