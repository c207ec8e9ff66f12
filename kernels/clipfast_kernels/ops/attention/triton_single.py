"""Attention of a single query per sequence: the last block's, and attention pooling's.

A tile of queries would be all but empty, and there is nothing to gain from tensor cores: every key
is read once, for two products. So a program takes one query and all its keys.

Shapes: T_q query rows, T_k key rows, H heads of WIDTH, B sequences.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops.attention.sequences import Sequences
from clipfast_kernels.ops.attention.triton_rows import bounds
from clipfast_kernels.ops.triton_tile import Config


def single_config(width: int) -> Config:
    """One query and BLOCK_N keys at a time."""
    padded = triton.next_power_of_2(width)
    return Config(1, 32, padded, 8 if padded > 64 else 4, 1)


@triton.jit
def single_query_fwd_kernel(
    q,
    k,
    v,
    out,
    lse,
    cu_q,
    cu_k,
    T_q,
    max_q,
    max_k,
    softmax_scale,
    q_stride,
    k_stride,
    v_stride,
    WIDTH: tl.constexpr,
    PACKED_Q: tl.constexpr,
    PACKED_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Computes: out = softmax(scale · q kᵀ) v of a sequence's one query, and its
        lse = log Σ e^{scale · q·k}; 0 and −inf without keys; nothing without a query.
    Grid: (sequences, heads).
    Each program owns: a query of a head. Each of a tile's BLOCK_N places has its own running
        maximum and sums, which meet only after the last key.
    FLOPs: 4·WIDTH per key. HBM bytes: everything once.
    Accumulates in: float32.
    Deterministic: yes. Interpreted and compiled; no GPU has run it.
    Source: Dao et al. 2022, arXiv 2205.14135.
    """
    query, end_q = bounds(cu_q, tl.program_id(0), max_q, PACKED_Q)
    first, last = bounds(cu_k, tl.program_id(0), max_k, PACKED_K)
    exists = query < end_q
    d = tl.arange(0, BLOCK_D)
    wide = d < WIDTH
    of_query = d < tl.where(exists, WIDTH, 0)
    column = tl.program_id(1) * WIDTH + d
    row = query.to(tl.int64)
    scaled = tl.load(q + row * q_stride + column, mask=of_query, other=0.0).to(tl.float32)
    scaled *= softmax_scale
    best = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    accumulator = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(first, last, BLOCK_N):
        key = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        there = (key < last)[:, None] & wide[None, :]
        k_tile = tl.load(k + key[:, None] * k_stride + column[None, :], mask=there, other=0.0)
        v_tile = tl.load(v + key[:, None] * v_stride + column[None, :], mask=there, other=0.0)
        s = tl.sum(k_tile.to(tl.float32) * scaled[None, :], axis=1)
        s = tl.where(key < last, s, float("-inf"))
        better = tl.maximum(best, s)
        anchor = tl.where(better == float("-inf"), 0.0, better)
        shrink = tl.exp(best - anchor)
        p = tl.exp(s - anchor)
        total = total * shrink + p
        accumulator = accumulator * shrink[:, None] + p[:, None] * v_tile.to(tl.float32)
        best = better
    top = tl.max(best, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp(best - top)
    whole = tl.sum(total * weight, axis=0)
    empty = whole == 0.0
    whole = tl.where(empty, 1.0, whole)
    o = tl.sum(accumulator * weight[:, None], axis=0) / whole
    dense = row * tl.num_programs(1) * WIDTH
    tl.store(out + dense + column, o.to(out.dtype.element_ty), mask=of_query)
    log_sum = tl.where(empty, float("-inf"), top + tl.log(whole))
    tl.store(lse + tl.program_id(1).to(tl.int64) * T_q + row, log_sum, mask=exists)


@triton.jit
def single_query_bwd_kernel(
    q,
    k,
    v,
    out,
    d_out,
    lse,
    d_q,
    d_k,
    d_v,
    cu_q,
    cu_k,
    T_q,
    max_q,
    max_k,
    softmax_scale,
    q_stride,
    k_stride,
    v_stride,
    d_q_stride,
    d_k_stride,
    d_v_stride,
    WIDTH: tl.constexpr,
    PACKED_Q: tl.constexpr,
    PACKED_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Computes: of a sequence's one query, with p_j = e^{scale · q·k_j − lse} and
        ds_j = p_j (d_out·v_j − d_out·out): d_q = scale Σ ds_j k_j, d_k_j = scale · ds_j q,
        d_v_j = p_j d_out; zeros for the keys of a sequence without a query.
    Grid: (sequences, heads).
    Each program owns: a query of a head and its keys.
    FLOPs: 10·WIDTH per key. HBM bytes: everything once.
    Accumulates in: float32.
    Deterministic: yes, no atomics. Interpreted and compiled; no GPU has run it.
    Source: Dao et al. 2022, arXiv 2205.14135, algorithm 4.
    """
    query, end_q = bounds(cu_q, tl.program_id(0), max_q, PACKED_Q)
    first, last = bounds(cu_k, tl.program_id(0), max_k, PACKED_K)
    exists = query < end_q
    d = tl.arange(0, BLOCK_D)
    wide = d < WIDTH
    of_query = d < tl.where(exists, WIDTH, 0)
    column = tl.program_id(1) * WIDTH + d
    row = query.to(tl.int64)
    dense = row * tl.num_programs(1) * WIDTH
    scaled = (
        tl.load(q + row * q_stride + column, mask=of_query, other=0.0).to(tl.float32)
        * softmax_scale
    )
    o = tl.load(out + dense + column, mask=of_query, other=0.0).to(tl.float32)
    d_o = tl.load(d_out + dense + column, mask=of_query, other=0.0).to(tl.float32)
    delta = tl.sum(o * d_o, axis=0)
    # A missing query gives every key the probability 0.
    log_sum = tl.load(
        lse + tl.program_id(1).to(tl.int64) * T_q + row, mask=exists, other=float("inf")
    )
    accumulator = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(first, last, BLOCK_N):
        key = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        there = (key < last)[:, None] & wide[None, :]
        k_tile = tl.load(k + key[:, None] * k_stride + column[None, :], mask=there, other=0.0)
        v_tile = tl.load(v + key[:, None] * v_stride + column[None, :], mask=there, other=0.0)
        k_tile = k_tile.to(tl.float32)
        s = tl.sum(k_tile * scaled[None, :], axis=1)
        p = tl.where(key < last, tl.exp(s - log_sum), 0.0)
        d_s = p * (tl.sum(v_tile.to(tl.float32) * d_o[None, :], axis=1) - delta)
        accumulator += d_s[:, None] * k_tile
        d_k_tile = (d_s[:, None] * scaled[None, :]).to(d_k.dtype.element_ty)
        d_v_tile = (p[:, None] * d_o[None, :]).to(d_v.dtype.element_ty)
        tl.store(d_k + key[:, None] * d_k_stride + column[None, :], d_k_tile, mask=there)
        tl.store(d_v + key[:, None] * d_v_stride + column[None, :], d_v_tile, mask=there)
    d_q_row = (tl.sum(accumulator, axis=0) * softmax_scale).to(d_q.dtype.element_ty)
    tl.store(d_q + row * d_q_stride + column, d_q_row, mask=of_query)


def _options(width: int, sequences: Sequences) -> dict[str, Any]:
    config = single_config(width)
    return {
        "WIDTH": width,
        "PACKED_Q": sequences.cu_q is not None,
        "PACKED_K": sequences.cu_k is not None,
        "BLOCK_N": config.BLOCK_N,
        "BLOCK_D": config.BLOCK_D,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def launch_fwd(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, sequences: Sequences
) -> None:
    single_query_fwd_kernel[sequences.batch, q.shape[1]](
        q, k, v, out, lse, sequences.cu_q, sequences.cu_k,
        len(q), sequences.max_q, sequences.max_k, sequences.scale,
        q.stride(0), k.stride(0), v.stride(0), **_options(q.shape[2], sequences),
    )  # fmt: skip


def launch_bwd(
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
    single_query_bwd_kernel[sequences.batch, q.shape[1]](
        q, k, v, out, d_out, lse, d_q, d_k, d_v, sequences.cu_q, sequences.cu_k,
        len(q), sequences.max_q, sequences.max_k, sequences.scale,
        q.stride(0), k.stride(0), v.stride(0), d_q.stride(0), d_k.stride(0), d_v.stride(0),
        **_options(q.shape[2], sequences),
    )  # fmt: skip
