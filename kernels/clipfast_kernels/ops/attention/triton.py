"""Attention's Triton backend: sequences of every length, a tile of one side against all it meets.

Where sequences are short a program's rows belong to several of them, and which rows of the other
side each of them meets comes from a table; otherwise a program's rows are of one sequence. A NaN in
one sequence reaches those that share a tile with it. A single query per sequence has kernels of its
own, in triton_single.

Exponents are natural, and log2(e) is not folded into the scale: float32 then rounds a score once,
as the formula does, and the backward's e^{s − lse} has no second rounding of the log-sum-exp.

Shapes: T_q query rows, T_k key rows, H heads of WIDTH, B sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops import triton_tile
from clipfast_kernels.ops.attention import triton_single
from clipfast_kernels.ops.attention.sequences import Sequences
from clipfast_kernels.ops.attention.triton_rows import (
    load_rows,
    owned_rows,
    span_table,
    store_rows,
)
from clipfast_kernels.ops.triton_tile import Config, launch_options

WIDTHS = (32, 64, 80, 96, 128)


def unusable(*tensors: Tensor) -> list[str]:
    reasons = triton_tile.unusable(*tensors)
    for width in sorted({t.shape[-1] for t in tensors if t.is_floating_point()} - set(WIDTHS)):
        known = ", ".join(map(str, WIDTHS))
        reasons.append(f"the heads are {width} wide, and this backend takes {known}")
    return reasons


def fwd_config(element_size: int, width: int) -> Config:
    """32-bit products run on the ordinary cores, which smaller tiles feed."""
    padded = triton.next_power_of_2(width)
    if element_size == 4:
        return Config(32, 16, padded, 8, 1)
    return Config(64, 64, padded, 8 if padded > 64 else 4, 2)


def bwd_config(element_size: int, width: int) -> Config:
    """BLOCK_M rows that a program owns, of whichever side, and BLOCK_N that it meets at a time:
    the largest that spill no register on any target.
    """
    padded = triton.next_power_of_2(width)
    if element_size == 4:
        return Config(16, 16, padded, 8, 1) if padded > 64 else Config(32, 16, padded, 4, 1)
    return Config(64, 32, padded, 4, 1 if padded > 64 else 2)


@triton.jit
def attention_fwd_kernel(
    q,
    k,
    v,
    out,
    lse,
    spans,
    cu_q,
    cu_k,
    T_q,
    max_q,
    max_k,
    causal,
    softmax_scale,
    q_stride,
    k_stride,
    v_stride,
    WIDTH: tl.constexpr,
    SPANS: tl.constexpr,
    PACKED_Q: tl.constexpr,
    PACKED_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: out = softmax(scale · q kᵀ) v over each query's span of keys, and
        lse = log Σ e^{scale · q·k}; 0 and −inf for an empty span.
    Grid: (blocks of queries, of the whole or of each sequence; heads).
    Each program owns: BLOCK_M queries of a head; it reads the keys from the first span's start to
        the last's end.
    FLOPs: 4·WIDTH per query and key of a tile. HBM bytes: q and out once, k and v once per block
        of queries (of one sequence mostly from L2), 4 per query.
    Accumulates in: float32; the probabilities are rounded to v's dtype for their product.
    Deterministic: yes. Interpreted and compiled; no GPU has run it.
    Source: Dao et al. 2022, arXiv 2205.14135.
    """
    row, exists, first, last, low, high = owned_rows(
        spans, cu_q, cu_k, T_q, max_q, max_k, causal, False, SPANS, PACKED_Q, PACKED_K, BLOCK_M
    )
    q_tile = load_rows(q, row, exists, q_stride, WIDTH, BLOCK_D)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    accumulator = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        k_tile = load_rows(k, key, key < high, k_stride, WIDTH, BLOCK_D)
        v_tile = load_rows(v, key, key < high, v_stride, WIDTH, BLOCK_D)
        seen = (key[None, :] >= first[:, None]) & (key[None, :] < last[:, None])
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        s = tl.where(seen, s * softmax_scale, float("-inf"))
        better = tl.maximum(best, tl.max(s, axis=1))
        # −inf − −inf would be NaN.
        anchor = tl.where(better == float("-inf"), 0.0, better)
        shrink = tl.exp(best - anchor)
        p = tl.exp(s - anchor[:, None])
        total = total * shrink + tl.sum(p, axis=1)
        accumulator = tl.dot(
            p.to(v_tile.dtype), v_tile, accumulator * shrink[:, None], input_precision=PRECISION
        )
        best = better
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    o = accumulator / total[:, None]
    store_rows(out, o, row, exists, tl.num_programs(1) * WIDTH, WIDTH, BLOCK_D)
    log_sum = tl.where(empty, float("-inf"), best + tl.log(total))
    tl.store(lse + tl.program_id(1).to(tl.int64) * T_q + row, log_sum, mask=exists)


@triton.jit
def attention_bwd_queries_kernel(
    q,
    k,
    v,
    out,
    d_out,
    lse,
    delta,
    d_q,
    spans,
    cu_q,
    cu_k,
    T_q,
    max_q,
    max_k,
    causal,
    softmax_scale,
    q_stride,
    k_stride,
    v_stride,
    d_q_stride,
    WIDTH: tl.constexpr,
    SPANS: tl.constexpr,
    PACKED_Q: tl.constexpr,
    PACKED_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: d_q = scale · dS k with dS = P ∘ (d_out vᵀ − δ), P = e^{scale · q kᵀ − lse}, and
        δ = Σ_d d_out ∘ out, which the keys' gradients need too.
    Grid: (blocks of queries, of the whole or of each sequence; heads).
    Each program owns: BLOCK_M queries of a head.
    FLOPs: 6·WIDTH per query and key of a tile. HBM bytes: q, out, d_out and d_q once, k and v once
        per block of queries, 8 per query.
    Accumulates in: float32; dS is rounded to k's dtype for its product.
    Deterministic: yes. Interpreted and compiled; no GPU has run it.
    Source: Dao et al. 2022, arXiv 2205.14135, algorithm 4.
    """
    row, exists, first, last, low, high = owned_rows(
        spans, cu_q, cu_k, T_q, max_q, max_k, causal, False, SPANS, PACKED_Q, PACKED_K, BLOCK_M
    )
    dense = tl.num_programs(1) * WIDTH
    q_tile = load_rows(q, row, exists, q_stride, WIDTH, BLOCK_D)
    d_tile = load_rows(d_out, row, exists, dense, WIDTH, BLOCK_D)
    o_tile = load_rows(out, row, exists, dense, WIDTH, BLOCK_D)
    of_row = tl.program_id(1).to(tl.int64) * T_q + row
    row_delta = tl.sum(d_tile.to(tl.float32) * o_tile.to(tl.float32), axis=1)
    tl.store(delta + of_row, row_delta, mask=exists)
    log_sum = tl.load(lse + of_row, mask=exists, other=0.0)
    accumulator = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(low, high, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        k_tile = load_rows(k, key, key < high, k_stride, WIDTH, BLOCK_D)
        v_tile = load_rows(v, key, key < high, v_stride, WIDTH, BLOCK_D)
        seen = (key[None, :] >= first[:, None]) & (key[None, :] < last[:, None])
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        p = tl.exp(s * softmax_scale - log_sum[:, None])
        p = tl.where(seen, p, 0.0)
        d_p = tl.dot(d_tile, tl.trans(v_tile), input_precision=PRECISION)
        d_s = p * (d_p - row_delta[:, None])
        accumulator = tl.dot(d_s.to(k_tile.dtype), k_tile, accumulator, input_precision=PRECISION)
    store_rows(d_q, accumulator * softmax_scale, row, exists, d_q_stride, WIDTH, BLOCK_D)


@triton.jit
def attention_bwd_keys_kernel(
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    d_k,
    d_v,
    spans,
    cu_q,
    cu_k,
    T_q,
    T_k,
    max_q,
    max_k,
    causal,
    softmax_scale,
    q_stride,
    k_stride,
    v_stride,
    d_k_stride,
    d_v_stride,
    WIDTH: tl.constexpr,
    SPANS: tl.constexpr,
    PACKED_Q: tl.constexpr,
    PACKED_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: d_v = Pᵀ d_out and d_k = scale · dSᵀ q, with P, dS and δ as for the queries.
    Grid: (blocks of keys, of the whole or of each sequence; heads).
    Each program owns: BLOCK_M keys of a head; its tiles are transposed, keys × queries.
    FLOPs: 8·WIDTH per query and key of a tile. HBM bytes: k, v, d_k and d_v once, q and d_out once
        per block of keys, 8 per query and block.
    Accumulates in: float32; P and dS are rounded to the inputs' dtype for their products.
    Deterministic: yes, no atomics. Interpreted and compiled; no GPU has run it.
    Source: Dao et al. 2022, arXiv 2205.14135, algorithm 4.
    """
    row, exists, first, last, low, high = owned_rows(
        spans, cu_k, cu_q, T_k, max_k, max_q, causal, True, SPANS, PACKED_K, PACKED_Q, BLOCK_M
    )
    k_tile = load_rows(k, row, exists, k_stride, WIDTH, BLOCK_D)
    v_tile = load_rows(v, row, exists, v_stride, WIDTH, BLOCK_D)
    of_head = tl.program_id(1).to(tl.int64) * T_q
    k_accumulator = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    v_accumulator = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(low, high, BLOCK_N):
        query = start + tl.arange(0, BLOCK_N)
        inside = query < high
        q_tile = load_rows(q, query, inside, q_stride, WIDTH, BLOCK_D)
        d_tile = load_rows(d_out, query, inside, tl.num_programs(1) * WIDTH, WIDTH, BLOCK_D)
        log_sum = tl.load(lse + of_head + query, mask=inside, other=0.0)
        query_delta = tl.load(delta + of_head + query, mask=inside, other=0.0)
        seen = (query[None, :] >= first[:, None]) & (query[None, :] < last[:, None])
        s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
        p = tl.exp(s * softmax_scale - log_sum[None, :])
        p = tl.where(seen, p, 0.0)
        v_accumulator = tl.dot(p.to(d_tile.dtype), d_tile, v_accumulator, input_precision=PRECISION)
        d_p = tl.dot(v_tile, tl.trans(d_tile), input_precision=PRECISION)
        d_s = p * (d_p - query_delta[None, :])
        k_accumulator = tl.dot(
            d_s.to(q_tile.dtype), q_tile, k_accumulator, input_precision=PRECISION
        )
    store_rows(d_k, k_accumulator * softmax_scale, row, exists, d_k_stride, WIDTH, BLOCK_D)
    store_rows(d_v, v_accumulator, row, exists, d_v_stride, WIDTH, BLOCK_D)


class _Plan(NamedTuple):
    """How one call's rows are dealt to programs."""

    sequences: Sequences
    config: Config
    of_several: bool  # whether a program's rows are of several sequences

    def queries(self, q: Tensor) -> tuple[int, Tensor | None]:
        """Blocks of queries, and the table of their spans."""
        if self.of_several:
            spans = span_table(len(q), self.sequences, of_keys=False)
            return triton.cdiv(len(q), self.config.BLOCK_M), spans
        return self.sequences.batch * triton.cdiv(self.sequences.max_q, self.config.BLOCK_M), None

    def keys(self, k: Tensor) -> tuple[int, Tensor | None]:
        """Blocks of keys, and the table of their spans."""
        if self.of_several:
            spans = span_table(len(k), self.sequences, of_keys=True)
            return triton.cdiv(len(k), self.config.BLOCK_M), spans
        return self.sequences.batch * triton.cdiv(self.sequences.max_k, self.config.BLOCK_M), None

    def options(self, width: int) -> dict[str, Any]:
        """What the kernels are compiled for."""
        packed_q, packed_k = self.sequences.cu_q is not None, self.sequences.cu_k is not None
        return {
            "WIDTH": width,
            "SPANS": self.of_several,
            "PACKED_Q": packed_q and not self.of_several,
            "PACKED_K": packed_k and not self.of_several,
            **launch_options(self.config),
        }


def _plan(q: Tensor, k: Tensor, sequences: Sequences, config: Config) -> _Plan:
    packed = sequences.cu_q is not None and sequences.cu_k is not None
    # Where sequences leave half a tile empty on average, it takes several.
    short = 2 * max(len(q), len(k)) <= sequences.batch * config.BLOCK_M
    return _Plan(sequences, config, packed and short)


def forward(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    rows, heads, width = q.shape
    out = q.new_empty(rows, heads, width)
    lse = q.new_empty(heads, rows, dtype=torch.float32)
    if sequences.max_q <= 1:
        triton_single.launch_fwd(q, k, v, out, lse, sequences)
        return out, lse
    plan = _plan(q, k, sequences, fwd_config(q.element_size(), width))
    blocks, spans = plan.queries(q)
    attention_fwd_kernel[blocks, heads](
        q, k, v, out, lse, spans, sequences.cu_q, sequences.cu_k,
        rows, sequences.max_q, sequences.max_k, int(sequences.causal), sequences.scale,
        q.stride(0), k.stride(0), v.stride(0), **plan.options(width),
    )  # fmt: skip
    return out, lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    sequences: Sequences,
) -> None:
    if sequences.max_q <= 1:
        triton_single.launch_bwd(d_out, q, k, v, out, lse, d_q, d_k, d_v, sequences)
        return
    heads, width = q.shape[1:]
    plan = _plan(q, k, sequences, bwd_config(q.element_size(), width))
    delta = torch.empty_like(lse)
    lengths = sequences.max_q, sequences.max_k, int(sequences.causal), sequences.scale
    strides = q.stride(0), k.stride(0), v.stride(0)
    blocks, spans = plan.queries(q)
    attention_bwd_queries_kernel[blocks, heads](
        q, k, v, out, d_out, lse, delta, d_q, spans, sequences.cu_q, sequences.cu_k,
        len(q), *lengths, *strides, d_q.stride(0), **plan.options(width),
    )  # fmt: skip
    blocks, spans = plan.keys(k)
    attention_bwd_keys_kernel[blocks, heads](
        q, k, v, d_out, lse, delta, d_k, d_v, spans, sequences.cu_q, sequences.cu_k,
        len(q), len(k), *lengths, *strides, d_k.stride(0), d_v.stride(0), **plan.options(width),
    )  # fmt: skip
