"""The calls of attention that `verify` tries.

B sequences, T tokens of all, L tokens of one, H heads, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast_kernels.ops.trial import Trial, leaf, normal

_WIDTH = 64
_OTHER_WIDTHS = (32, 80, 96, 128)

# Keys per sequence, on average: ViT-B-32's images and most captions; ViT-B-16's; ViT-L-14's; more.
_LENGTHS = (64, 224, 320)
_ODD = [1, 0, 5, 77, 17, 33]


def shape_class(*tensors: Tensor) -> str:
    """By the tensors of a public call: qkv, or q and kv, or q, k and v, then cu_seqlens."""
    floats = [t for t in tensors if t.is_floating_point()]
    bounds = [t for t in tensors if not t.is_floating_point()]
    queries, keys = floats[0], floats[min(1, len(floats) - 1)]
    if bounds:
        batch = len(bounds[0]) - 1
        return length_class(queries.shape[0], keys.shape[0], batch, packed=True)
    batch = queries.shape[0]
    return length_class(batch * queries.shape[1], batch * keys.shape[1], batch, packed=False)


def length_class(rows: int, columns: int, batch: int, *, packed: bool) -> str:
    """The kind of a call with these many queries and keys in all the sequences together."""
    kind = "packed" if packed else "batched"
    if rows == batch and columns > rows:
        kind = "one query of"
    for length in _LENGTHS:
        if columns <= length * batch:
            return f"{kind} L≤{length}"
    return f"{kind} L>{_LENGTHS[-1]}"


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    made = _Made(device, dtype)
    many = device.type != "cpu"
    heads = 12 if many else 2
    for width in (_WIDTH, *_OTHER_WIDTHS):
        yield made.packed(f"odd sizes, D={width}", _ODD, 3, width)._replace(timed=False)
    yield made.batched("odd sizes, batched", 3, 19, 2)._replace(timed=False)
    yield made.one_query_each()
    for length, batch in ((50, 256), (197, 64), (257, 48), (577, 24)):
        batch = batch if many else 4
        kind = length_class(batch * length, batch * length, batch, packed=False)
        yield made.batched(kind, batch, length, heads)
        kind = length_class(batch, batch * length, batch, packed=False)
        yield made.one_query(kind, batch, length, heads)
    for mean, batch in ((17, 1024), (160, 128)):
        lengths = _lengths(mean, batch if many else 8)
        kind = length_class(sum(lengths), sum(lengths), len(lengths), packed=True)
        yield made.packed(kind, lengths, heads, _WIDTH)


def _lengths(mean: int, batch: int) -> list[int]:
    """From a third of the mean to five thirds, in no order."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(mean // 3, 2 * mean - mean // 3 + 1, (batch,), generator=generator)
    found: list[int] = drawn.tolist()
    return found


class _Made(NamedTuple):
    """Trials on a device in a dtype."""

    device: torch.device
    dtype: torch.dtype

    def batched(self, kind: str, batch: int, length: int, heads: int) -> Trial:
        def call(backend: str, qkv: Tensor, d_out: Tensor) -> dict[str, Tensor]:
            return _attention(backend, qkv, None, None, False, d_out)

        shapes = (batch, length, 3, heads, _WIDTH), (batch, length, heads, _WIDTH)
        return Trial(kind, self._draw(shapes), call)

    def packed(self, kind: str, lengths: list[int], heads: int, width: int) -> Trial:
        """Causal, as captions are."""

        def call(backend: str, qkv: Tensor, d_out: Tensor, cu_seqlens: Tensor) -> dict[str, Tensor]:
            return _attention(backend, qkv, cu_seqlens, max(lengths), True, d_out)

        tokens = sum(lengths)
        shapes = (tokens, 3, heads, width), (tokens, heads, width)
        return Trial(kind, self._draw(shapes, lengths), call)

    def one_query(self, kind: str, batch: int, length: int, heads: int) -> Trial:
        """As the last block and attention pooling have."""
        of_query = batch, 1, heads, _WIDTH
        shapes = of_query, (batch, length, 2, heads, _WIDTH), of_query
        return Trial(kind, self._draw(shapes), _one_query_attention)

    def one_query_each(self) -> Trial:
        """Of packed sequences of odd sizes, as the last block of the text tower has."""
        heads, batch = 3, len(_ODD)
        of_query = batch, heads, _WIDTH
        shapes = of_query, (sum(_ODD), 2, heads, _WIDTH), of_query
        draw = self._draw(shapes, [1] * batch, _ODD)
        return Trial("odd sizes, one query", draw, _one_query_attention, timed=False)

    def _draw(
        self, shapes: tuple[tuple[int, ...], ...], *lengths: list[int]
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """Tensors of these shapes, and cu_seqlens of these lengths."""
        bounds = [_bounds(x, self.device) for x in lengths]
        return lambda seed: (*normal(seed, self.dtype, self.device, *shapes), *bounds)


def _bounds(lengths: list[int], device: torch.device) -> Tensor:
    starts = [0, *itertools.accumulate(lengths)]
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _attention(
    backend: str,
    qkv: Tensor,
    cu_seqlens: Tensor | None,
    longest: int | None,
    causal: bool,
    d_out: Tensor,
) -> dict[str, Tensor]:
    from clipfast_kernels.ops.attention.api import attention_qkv

    qkv = leaf(qkv)
    out = attention_qkv(qkv, cu_seqlens, max_seqlen=longest, causal=causal, backend=backend)
    (d_qkv,) = torch.autograd.grad(out, qkv, d_out)
    d_q, d_k, d_v = d_qkv.unbind(-3)
    return {"out": out.detach(), "d_q": d_q, "d_k": d_k, "d_v": d_v}


def _one_query_attention(
    backend: str,
    q: Tensor,
    kv: Tensor,
    d_out: Tensor,
    cu_q: Tensor | None = None,
    cu_k: Tensor | None = None,
) -> dict[str, Tensor]:
    from clipfast_kernels.ops.attention.api import attention_kv

    q, kv = leaf(q), leaf(kv)
    longest = None if cu_q is None else max(_ODD)
    out = attention_kv(q, kv, cu_q, cu_k, max_seqlen_q=1, max_seqlen_k=longest, backend=backend)
    d_q, d_kv = torch.autograd.grad(out, [q, kv], d_out)
    d_k, d_v = d_kv.unbind(-3)
    return {"out": out.detach(), "d_q": d_q, "d_k": d_k, "d_v": d_v}
