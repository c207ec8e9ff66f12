"""How sequences of tokens lie in memory, and attention over them.

A transformer block only ever asks its layout three things: attend over whole sequences, attend
from each sequence's pooled token alone, and pick the pooled tokens. So the same blocks serve
images and captions, packed or padded.

B sequences, L tokens of each, T tokens of all, U of them shared, H heads, D head width, W = H·D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from clipfast_kernels import attention, attention_kv, attention_qkv
from torch import Tensor

from clipfast.packed_text import PackedText, SharedText


class BatchedTokens(NamedTuple):
    """(B, L, W): sequences of one length, pooled at one place.

    Attributes:
        heads: H.
        causal: token i sees the tokens 0 to i; then only the last one can be pooled.
        pooled_at: the place of the pooled token; images have their class token first.
    """

    heads: int
    causal: bool = False
    pooled_at: int = 0

    def attend(self, *parts_BLW: Tensor) -> Tensor:
        """(B, L, 3·W) or three (B, L, W) -> (B, L, W)."""
        return _attend(parts_BLW, self.heads, causal=self.causal)

    def attend_pooled(self, q_BW: Tensor, *parts_BLW: Tensor) -> Tensor:
        """(B, W), and (B, L, 2·W) or two (B, L, W) -> (B, W)."""
        return _attend_from(q_BW[:, None], parts_BLW, self.heads)[:, 0]

    def pooled(self, x_BLW: Tensor) -> Tensor:
        return x_BLW[:, self.pooled_at]


class PaddedTokens(NamedTuple):
    """(B, L, W): causal sequences, padded behind the pooled token, for who must see whole blocks.

    Attributes:
        heads: H.
        last: (B,) int64, each sequence's pooled token, which sees no padding.
    """

    heads: int
    last: Tensor

    def attend(self, *parts_BLW: Tensor) -> Tensor:
        """(B, L, 3·W) or three (B, L, W) -> (B, L, W)."""
        return _attend(parts_BLW, self.heads, causal=True)

    def attend_pooled(self, q_BW: Tensor, *parts_BLW: Tensor) -> Tensor:
        raise NotImplementedError("padded tokens: every block computes every token")

    def pooled(self, x_BLW: Tensor) -> Tensor:
        return x_BLW[torch.arange(len(self.last), device=self.last.device), self.last]


class PackedTokens(NamedTuple):
    """(T, W): causal sequences laid end to end, pooled at the last token.

    Attributes:
        heads: H.
        cu_seqlens: (B+1,) int32, where each sequence begins, and T.
        max_length: the longest of them, or more.
        positions: (T,) int64, each token's in its own sequence.
        last: (B,) int64, the row of each sequence's last token.
    """

    heads: int
    cu_seqlens: Tensor
    max_length: int
    positions: Tensor
    last: Tensor

    @staticmethod
    def of(cu_seqlens: Tensor, tokens: int, heads: int, max_length: int) -> PackedTokens:
        """Args: T = `tokens`; the others as the attributes."""
        starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        row = torch.arange(tokens, device=ends.device)
        positions = row - starts.repeat_interleave(ends - starts, output_size=tokens)
        return PackedTokens(heads, cu_seqlens, max_length, positions, ends - 1)

    def attend(self, *parts_TW: Tensor) -> Tensor:
        """(T, 3·W) or three (T, W) -> (T, W)."""
        return _attend(parts_TW, self.heads, self.cu_seqlens, self.max_length, causal=True)

    def attend_pooled(self, q_BW: Tensor, *parts_TW: Tensor) -> Tensor:
        """(B, W), and (T, 2·W) or two (T, W) -> (B, W). The last token sees all of its sequence."""
        one_each = torch.arange(len(q_BW) + 1, dtype=torch.int32, device=q_BW.device)
        return _attend_from(
            q_BW, parts_TW, self.heads, one_each, self.cu_seqlens, 1, self.max_length
        )

    def pooled(self, x_TW: Tensor) -> Tensor:
        return x_TW.index_select(0, self.last)


class SharedTokens(NamedTuple):
    """(U, W): causal sequences whose common beginnings are held once, pooled at the last token.

    A sequence's fresh tokens, which are its last ones, ask; all of its tokens answer. A beginning
    is asked for where it is fresh, once::

        a photo of a cat     asks with all its tokens
        a photo of a dog     asks with dog; the keys of "a photo of a" are there

    Attributes:
        whole: the sequences as if nothing was shared.
        paths: (T,) int64, the row of each of their tokens.
        cu_fresh: (B+1,) int32, where the fresh tokens of each sequence begin, and U.
        positions: (U,) int64, each token's in its sequences.
        last: (B,) int64, the row of each sequence's last token.
    """

    whole: PackedTokens
    paths: Tensor
    cu_fresh: Tensor
    positions: Tensor
    last: Tensor

    @staticmethod
    def of(text: SharedText, heads: int, max_length: int) -> SharedTokens:
        """Args: as the attributes of `PackedTokens`."""
        paths = text.paths.tokens
        whole = PackedTokens.of(text.paths.cu_seqlens, len(paths), heads, max_length)
        positions = torch.empty_like(text.tokens)
        positions[paths] = whole.positions
        return SharedTokens(whole, paths, text.cu_fresh, positions, paths[whole.last])

    def attend(self, *parts_UW: Tensor) -> Tensor:
        """(U, 3·W) or three (U, W) -> (U, W)."""
        q, *rest = parts_UW
        if not rest:
            width = q.shape[-1] // 3
            q, rest = q[:, :width], [q[:, width:]]
        cu_q, cu_k, longest = self.cu_fresh, self.whole.cu_seqlens, self.whole.max_length
        parts = self._along_paths(rest)
        return _attend_from(q, parts, self.whole.heads, cu_q, cu_k, longest, longest, causal=True)

    def attend_pooled(self, q_BW: Tensor, *parts_UW: Tensor) -> Tensor:
        """(B, W), and (U, 2·W) or two (U, W) -> (B, W)."""
        return self.whole.attend_pooled(q_BW, *self._along_paths(parts_UW))

    def pooled(self, x_UW: Tensor) -> Tensor:
        return x_UW.index_select(0, self.last)

    def _along_paths(self, parts_UW: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(T, …) each."""
        return tuple(x.index_select(0, self.paths) for x in parts_UW)


Layout = BatchedTokens | PaddedTokens | PackedTokens | SharedTokens


def text_layout(
    text: PackedText | SharedText, heads: int, max_length: int
) -> PackedTokens | SharedTokens:
    """Args: as the attributes of `PackedTokens`."""
    if isinstance(text, SharedText):
        return SharedTokens.of(text, heads, max_length)
    return PackedTokens.of(text.cu_seqlens, len(text.tokens), heads, max_length)


def _attend(
    parts: tuple[Tensor, ...],
    heads: int,
    cu_seqlens: Tensor | None = None,
    max_length: int | None = None,
    *,
    causal: bool,
) -> Tensor:
    if len(parts) == 1:
        qkv = _split_heads(parts[0], 3, heads)
        out = attention_qkv(qkv, cu_seqlens, max_seqlen=max_length, causal=causal)
    else:
        q, k, v = (x.unflatten(-1, (heads, -1)) for x in parts)
        out = attention(
            *(q, k, v, cu_seqlens),
            max_seqlen_q=max_length,
            max_seqlen_k=max_length,
            causal=causal,
        )
    return out.flatten(-2)


def _attend_from(
    q: Tensor,
    parts: tuple[Tensor, ...],
    heads: int,
    cu_q: Tensor | None = None,
    cu_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    q = q.unflatten(-1, (heads, -1))
    if len(parts) == 1:
        kv = _split_heads(parts[0], 2, heads)
        out = attention_kv(
            *(q, kv, cu_q, cu_k), max_seqlen_q=max_q, max_seqlen_k=max_k, causal=causal
        )
    else:
        k, v = (x.unflatten(-1, (heads, -1)) for x in parts)
        out = attention(
            *(q, k, v, cu_q, cu_k), max_seqlen_q=max_q, max_seqlen_k=max_k, causal=causal
        )
    return out.flatten(-2)


def _split_heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(…, parts·H·D) -> (…, parts, H, D), a view."""
    return x.unflatten(-1, (parts, heads, -1))
