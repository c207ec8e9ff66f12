"""`gathered_similarity`'s Triton backend: one sweep, top k in registers.

Shapes: n queries, N keys, D features, K slots ≥ topk, a power of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops.triton_tile import (
    SIMILARITY_CONFIGS,
    column_splits,
    dot_tile,
    launch_options,
    merge_sums,
    unusable,
)

__all__ = ["forward", "unusable"]

# Slots are held in registers.
MAX_TOPK = 64


@triton.jit
def positive_kernel(
    queries,
    chosen,
    scale,
    positive,
    n,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: positive_i = scale · queries_i · chosen_i, with the sweep's own tile, so that it
        has the bits that the sweep compares it with.
    Grid: (blocks of BLOCK_M queries).
    Each program owns: BLOCK_M queries; of its tiles only the diagonal counts.
    FLOPs: 2·n·BLOCK_M·D. HBM bytes: two rows per query.
    Accumulates in: float32. Deterministic: yes.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    value = tl.zeros((BLOCK_M,), tl.float32)
    for part in range(0, BLOCK_M, BLOCK_N):
        col = tl.program_id(0) * BLOCK_M + part + tl.arange(0, BLOCK_N)
        z = dot_tile(queries, chosen, row, col, n, n, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        value += tl.sum(tl.where(row[:, None] == col[None, :], z, 0.0), axis=1)
    tl.store(positive + row, value * tl.load(scale), mask=row < n)


@triton.jit
def similarity_kernel(
    queries,
    keys,
    scale,
    positives,
    positive,
    row_max,
    row_sum,
    rank,
    topk_values,
    topk_indices,
    n,
    N,
    D,
    tiles,
    HAS_POSITIVES: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: of z = scale · queries · keysᵀ by row and column split the maximum and
        Σ e^{z − maximum}, how many z exceed the positive's, and the K largest with their columns.
    Grid: (blocks of queries, column splits).
    Each program owns: BLOCK_M queries against `tiles` blocks of keys.
    FLOPs: 2·n·N·D, and per new best value one pass over a tile. HBM bytes: queries and keys once
        per opposite block (mostly from L2); results (16 + 12·K)·n·splits.
    Accumulates in: float32; counts in int32; the host merges the splits.
    Deterministic: yes, no atomics; of equal values the lowest column is kept.
    Source: Milakov and Gimelshein 2018, arXiv 1805.02867 (online maximum and top k).
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = row < n
    factor = tl.load(scale)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    more = tl.zeros((BLOCK_M,), tl.int32)
    if HAS_POSITIVES:
        own_column = tl.load(positives + row, mask=in_rows, other=-1)
        own = tl.load(positive + row, mask=in_rows, other=0.0)
    if K > 0:
        # Free slots have columns of their own below 0, so that each is told from the others.
        values = tl.full((BLOCK_M, K), float("-inf"), tl.float32)
        columns = tl.zeros((BLOCK_M, K), tl.int32) - 1 - tl.arange(0, K)[None, :]
    for tile in range(tiles):
        col = (tl.program_id(1) * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        z = dot_tile(queries, keys, row, col, n, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
        z = tl.where((col < N)[None, :], z * factor, float("-inf"))
        better = tl.maximum(best, tl.max(z, axis=1))
        anchor = tl.where(better == float("-inf"), 0.0, better)
        total = total * tl.exp(best - anchor) + tl.sum(tl.exp(z - anchor[:, None]), axis=1)
        best = better
        if HAS_POSITIVES:
            exceeds = (z > own[:, None]) & (col[None, :] != own_column[:, None])
            more += tl.sum(exceeds.to(tl.int32), axis=1)
        if K > 0:
            left = tl.where(z == z, z, float("-inf"))
            worst = tl.min(values, axis=1)
            while tl.max((tl.max(left, axis=1) > worst).to(tl.int32), axis=0) > 0:
                value, place = tl.max(
                    left, axis=1, return_indices=True, return_indices_tie_break_left=True
                )
                enters = value > worst
                # Of the worst slots the one with the highest column gives way.
                is_worst = values == worst[:, None]
                last = tl.max(tl.where(is_worst, columns, -K - 1), axis=1)
                slot = enters[:, None] & is_worst & (columns == last[:, None])
                values = tl.where(slot, value[:, None], values)
                entering = (tl.program_id(1) * tiles + tile) * BLOCK_N + place
                columns = tl.where(slot, entering[:, None], columns)
                taken = tl.arange(0, BLOCK_N)[None, :] == place[:, None]
                left = tl.where(taken & enters[:, None], float("-inf"), left)
                worst = tl.min(values, axis=1)
    at = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(row_max + at, best, mask=in_rows)
    tl.store(row_sum + at, total, mask=in_rows)
    if HAS_POSITIVES:
        tl.store(rank + at, more, mask=in_rows)
    if K > 0:
        slots = at[:, None] * K + tl.arange(0, K)[None, :]
        tl.store(topk_values + slots, values, mask=in_rows[:, None])
        tl.store(topk_indices + slots, columns, mask=in_rows[:, None])


def forward(
    queries: Tensor, keys: Tensor, scale: Tensor, positives: Tensor | None, topk: int
) -> tuple[Tensor | None, ...]:
    if topk > MAX_TOPK:
        raise RuntimeError(
            f"gathered_similarity: backend 'triton': expected topk of at most {MAX_TOPK}; "
            f"got {topk}"
        )
    n, columns, device = len(queries), len(keys), queries.device
    slots = triton.next_power_of_2(topk) if topk else 0
    config = SIMILARITY_CONFIGS[queries.element_size()]
    blocks = triton.cdiv(n, config.BLOCK_M)
    splits, tiles = column_splits(blocks, triton.cdiv(columns, config.BLOCK_N))
    factor = scale.float().reshape(1)
    of_rows = torch.empty(2, n, splits, device=device)
    rank = torch.zeros(n, splits, dtype=torch.int32, device=device)
    values = torch.empty(n, splits * slots, device=device)
    indices = torch.empty(n, splits * slots, dtype=torch.int32, device=device)
    positive = None
    if positives is not None:
        positive = torch.empty(n, device=device)
        positive_kernel[(blocks,)](
            queries, keys[positives], factor, positive, n, queries.shape[1],
            **launch_options(config),
        )  # fmt: skip
    similarity_kernel[blocks, splits](
        queries, keys, factor, positives, positive, *of_rows, rank, values, indices,
        n, columns, queries.shape[1], tiles,
        HAS_POSITIVES=positives is not None, K=slots, **launch_options(config),
    )  # fmt: skip
    best, total = merge_sums(of_rows.double(), dim=1)
    logsumexp = (best + total.log()).float()
    ranks = None
    if positive is not None:
        ranks = torch.where(positive.isnan(), columns, rank.sum(dim=1))
    if not topk:
        return logsumexp, positive, ranks, None, None
    # By column first, then, stably, by value: of equal values the lowest column stays first.
    indices, order = indices.sort(dim=1, stable=True)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, order)[:, :topk].long()
    values = values[:, :topk].contiguous()
    return logsumexp, positive, ranks, values, indices.masked_fill(indices < 0, -1)
