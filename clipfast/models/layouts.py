"""How sequences of tokens lie in memory, and attention over them.

A transformer block only ever asks its layout three things: attend over whole sequences, attend
from each sequence's pooled token alone, and pick the pooled tokens. So the same blocks serve
images and packed captions.

B sequences, L tokens of each, T tokens of all, H heads, D head width, W = H·D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ImageTokens(NamedTuple):
    """(B, L, W): sequences of one length, bidirectional, pooled at the first token."""

    heads: int

    def attend(self, qkv_BLW: Tensor) -> Tensor:
        """(B, L, 3·W) -> (B, L, W)."""
        q, k, v = _split_heads(qkv_BLW, 3, self.heads)
        return _merge_heads(F.scaled_dot_product_attention(q, k, v))

    def attend_pooled(self, q_BW: Tensor, kv_BLW: Tensor) -> Tensor:
        """(B, W), (B, L, 2·W) -> (B, W)."""
        (q,) = _split_heads(q_BW[:, None], 1, self.heads)
        k, v = _split_heads(kv_BLW, 2, self.heads)
        return _merge_heads(F.scaled_dot_product_attention(q, k, v))[:, 0]

    def pooled(self, x_BLW: Tensor) -> Tensor:
        return x_BLW[:, 0]


class PackedTokens(NamedTuple):
    """(T, W): causal sequences laid end to end, pooled at the last token.

    Attributes:
        heads: H.
        lengths: (B,) int64.
        max_length: the longest of them.
        places: (T,) int64, each token's row in the padded (B · max_length) array.
        last: (B,) int64, the row of each sequence's last token.
    """

    heads: int
    lengths: Tensor
    max_length: int
    places: Tensor
    last: Tensor

    @staticmethod
    def of(cu_seqlens: Tensor, heads: int) -> PackedTokens:
        ends = cu_seqlens[1:].long()
        lengths = ends - cu_seqlens[:-1]
        max_length = int(lengths.max())
        padding_before = torch.arange(len(lengths), device=ends.device) * max_length - (
            ends - lengths
        )
        row = torch.arange(int(ends[-1]), device=ends.device)
        places = row + padding_before.repeat_interleave(lengths)
        return PackedTokens(heads, lengths, max_length, places, ends - 1)

    @property
    def positions(self) -> Tensor:
        """(T,) each token's position in its own sequence."""
        return self.places % self.max_length

    def attend(self, qkv_TW: Tensor) -> Tensor:
        """(T, 3·W) -> (T, W). Padding follows every real token, so the causal mask hides it."""
        q, k, v = _split_heads(self._pad(qkv_TW), 3, self.heads)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return _merge_heads(out).flatten(0, 1).index_select(0, self.places)

    def attend_pooled(self, q_BW: Tensor, kv_TW: Tensor) -> Tensor:
        """(B, W), (T, 2·W) -> (B, W)."""
        (q,) = _split_heads(q_BW[:, None], 1, self.heads)
        k, v = _split_heads(self._pad(kv_TW), 2, self.heads)
        real_BL = torch.arange(self.max_length, device=k.device) < self.lengths[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=real_BL[:, None, None])
        return _merge_heads(out)[:, 0]

    def pooled(self, x_TW: Tensor) -> Tensor:
        return x_TW.index_select(0, self.last)

    def _pad(self, x_TW: Tensor) -> Tensor:
        batch, width = len(self.lengths), x_TW.shape[1]
        padded = x_TW.new_zeros(batch * self.max_length, width).index_copy(0, self.places, x_TW)
        return padded.view(batch, self.max_length, width)


def _split_heads(x_BLW: Tensor, parts: int, heads: int) -> list[Tensor]:
    """(B, L, parts·H·D) -> parts × (B, H, L, D), views."""
    batch, length, _ = x_BLW.shape
    return list(x_BLW.view(batch, length, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind())


def _merge_heads(x_BHLD: Tensor) -> Tensor:
    return x_BHLD.transpose(1, 2).flatten(2)
