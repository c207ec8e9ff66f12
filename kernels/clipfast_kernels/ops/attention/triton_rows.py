"""Which rows a program of attention's Triton kernels owns, and which of the other side they meet.

Every row has a span: the rows of the other side that it meets, [first, last). Sequences, causality
and padding are nothing but spans, so the kernels know of no other mask.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops.attention.sequences import Sequences

# Rows of the table of spans that a program finds.
SPANS_BLOCK = 128

_LARGEST = tl.constexpr(2**31 - 1)


@triton.jit
def span_of(row, own_first, own_last, other_first, other_last, causal, OF_KEYS: tl.constexpr):
    """[first, last) of the other side's rows that a row meets; empty where last ≤ first.

    Query i sees the keys j ≤ i + reach, with a reach beyond the last key unless it is causal.
    """
    at = row - own_first
    own_length = own_last - own_first
    other_length = other_last - other_first
    if OF_KEYS:
        reach = own_length - causal * other_length
        return other_first + tl.maximum(at - reach, 0), other_last + 0 * at
    reach = other_length - causal * own_length
    return other_first + 0 * at, tl.minimum(other_first + at + reach + 1, other_last)


@triton.jit
def spans_kernel(
    cu_own,
    cu_other,
    spans,
    rows,
    batch,
    bits,
    causal,
    OF_KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Computes: spans (rows, 2) int32, the span of every row of one side; (0, 0) for a row that is
        in no sequence.
    Grid: (blocks of BLOCK_M rows).
    Each program owns: BLOCK_M rows.
    FLOPs: none. HBM bytes: 8 per row; of cu_own `bits` reads per row, from the caches.
    Deterministic: yes. Interpreted and compiled; no GPU has run it.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    # The last sequence that begins at or before the row, bit by bit: empty ones precede it.
    b = tl.zeros((BLOCK_M,), tl.int32)
    for bit in range(bits):
        ahead = b + (1 << (bits - 1 - bit))
        begins = tl.load(cu_own + ahead, mask=ahead <= batch, other=_LARGEST)
        b = tl.where(begins <= row, ahead, b)
    inside = b < batch
    own_first = tl.load(cu_own + b, mask=inside, other=0)
    own_last = tl.load(cu_own + b + 1, mask=inside, other=0)
    other_first = tl.load(cu_other + b, mask=inside, other=0)
    other_last = tl.load(cu_other + b + 1, mask=inside, other=0)
    first, last = span_of(row, own_first, own_last, other_first, other_last, causal, OF_KEYS)
    tl.store(spans + 2 * row, tl.where(inside, first, 0), mask=row < rows)
    tl.store(spans + 2 * row + 1, tl.where(inside, last, 0), mask=row < rows)


@triton.jit
def bounds(cu, b, length, PACKED: tl.constexpr):
    """The first row of sequence b and the one after its last."""
    if PACKED:
        return tl.load(cu + b), tl.load(cu + b + 1)
    return b * length, b * length + length


@triton.jit
def owned_rows(
    spans,
    cu_own,
    cu_other,
    rows,
    own_max,
    other_max,
    causal,
    OF_KEYS: tl.constexpr,
    SPANS: tl.constexpr,
    OWN_PACKED: tl.constexpr,
    OTHER_PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This program's rows, whether they exist, their spans, and the span of all of them."""
    if SPANS:
        row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        exists = row < rows
        first = tl.load(spans + 2 * row, mask=exists, other=0)
        last = tl.load(spans + 2 * row + 1, mask=exists, other=0)
    else:
        blocks = tl.cdiv(own_max, BLOCK)
        b = tl.program_id(0) // blocks
        own_first, own_last = bounds(cu_own, b, own_max, OWN_PACKED)
        other_first, other_last = bounds(cu_other, b, other_max, OTHER_PACKED)
        row = own_first + (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
        exists = row < own_last
        first, last = span_of(row, own_first, own_last, other_first, other_last, causal, OF_KEYS)
    meets = exists & (first < last)
    low = tl.min(tl.where(meets, first, _LARGEST), axis=0)
    high = tl.max(tl.where(meets, last, 0), axis=0)
    return row, exists, first, last, low, high


@triton.jit
def load_rows(x, row, exists, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) of this program's head; zeros beyond the head's width."""
    d = tl.arange(0, BLOCK_D)
    at = x + tl.program_id(1) * WIDTH + row.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(at, mask=exists[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit
def store_rows(x, tile, row, exists, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    at = x + tl.program_id(1) * WIDTH + row.to(tl.int64)[:, None] * stride + d[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=exists[:, None] & (d < WIDTH)[None, :])


def span_table(rows: int, sequences: Sequences, *, of_keys: bool) -> Tensor:
    """(rows, 2) int32, of packed queries or packed keys."""
    own, other = sequences.cu_q, sequences.cu_k
    if of_keys:
        own, other = other, own
    assert own is not None
    spans = own.new_empty(rows, 2)
    spans_kernel[(triton.cdiv(rows, SPANS_BLOCK),)](
        own, other, spans, rows, sequences.batch, sequences.batch.bit_length(),
        int(sequences.causal), OF_KEYS=of_keys, BLOCK_M=SPANS_BLOCK,
    )  # fmt: skip
    return spans
