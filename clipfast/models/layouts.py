"""How sequences of tokens lie in memory, and attention over them.

A transformer block only ever asks its layout three things: attend over whole sequences, attend
from each sequence's pooled token alone, and pick the pooled tokens. So the same blocks serve
images and packed captions.

B sequences, L tokens of each, T tokens of all, H heads, D head width, W = H·D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from clipfast_kernels import attention_kv, attention_qkv
from torch import Tensor


class ImageTokens(NamedTuple):
    """(B, L, W): sequences of one length, bidirectional, pooled at the first token."""

    heads: int

    def attend(self, qkv_BLW: Tensor) -> Tensor:
        """(B, L, 3·W) -> (B, L, W)."""
        return attention_qkv(_split_heads(qkv_BLW, 3, self.heads)).flatten(-2)

    def attend_pooled(self, q_BW: Tensor, kv_BLW: Tensor) -> Tensor:
        """(B, W), (B, L, 2·W) -> (B, W)."""
        q = q_BW.unflatten(-1, (self.heads, -1))[:, None]
        return attention_kv(q, _split_heads(kv_BLW, 2, self.heads)).flatten(1)

    def pooled(self, x_BLW: Tensor) -> Tensor:
        return x_BLW[:, 0]


class PackedTokens(NamedTuple):
    """(T, W): causal sequences laid end to end, pooled at the last token.

    Attributes:
        heads: H.
        cu_seqlens: (B+1,) int32, where each sequence begins, and T.
        max_length: the longest of them.
        positions: (T,) int64, each token's in its own sequence.
        last: (B,) int64, the row of each sequence's last token.
    """

    heads: int
    cu_seqlens: Tensor
    max_length: int
    positions: Tensor
    last: Tensor

    @staticmethod
    def of(cu_seqlens: Tensor, heads: int) -> PackedTokens:
        starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        lengths = ends - starts
        row = torch.arange(int(ends[-1]), device=ends.device)
        positions = row - starts.repeat_interleave(lengths, output_size=len(row))
        return PackedTokens(heads, cu_seqlens, int(lengths.max()), positions, ends - 1)

    def attend(self, qkv_TW: Tensor) -> Tensor:
        """(T, 3·W) -> (T, W)."""
        qkv = _split_heads(qkv_TW, 3, self.heads)
        return attention_qkv(qkv, self.cu_seqlens, max_seqlen=self.max_length, causal=True).flatten(
            -2
        )

    def attend_pooled(self, q_BW: Tensor, kv_TW: Tensor) -> Tensor:
        """(B, W), (T, 2·W) -> (B, W). The last token sees all of its sequence."""
        q = q_BW.unflatten(-1, (self.heads, -1))
        one_each = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
        return attention_kv(
            q,
            _split_heads(kv_TW, 2, self.heads),
            one_each,
            self.cu_seqlens,
            max_seqlen_q=1,
            max_seqlen_k=self.max_length,
        ).flatten(-2)

    def pooled(self, x_TW: Tensor) -> Tensor:
        return x_TW.index_select(0, self.last)


def _split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(…, parts·H·D) -> (…, parts, H, D), a view."""
    return x.unflatten(-1, (parts, heads, -1))
