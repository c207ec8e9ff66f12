"""The contrastive loss's Triton backend: a sweep for the log-likelihoods, one for the gradient.

The host walks panels of P rows against all N columns. The forward keeps only sums; the backward
writes a panel of H = ∂loss/∂logits in the inputs' dtype, which two products of the vendor's library
turn into gradients: 4 products in all, as many as there must be without an N×N array. A fused
alternative would hold a 128×D float32 accumulator, at D = 512 a whole SM's registers.

Shapes: n rows, N columns, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops.block import Block, SoftmaxForward, SoftmaxSaved
from clipfast_kernels.ops.panel import finish_gradient, inverse_norms, panels, product
from clipfast_kernels.ops.triton_tile import (
    PAIR_CONFIGS,
    column_splits,
    factors,
    high_and_low,
    launch_options,
    left_out,
    logit_tile,
    merge_sums,
    panel_scale,
    unit_rows,
    unusable,
)

__all__ = ["backward", "forward", "unusable"]


@triton.jit
def contrastive_fwd_kernel(
    x,
    y,
    x_factor,
    y_factor,
    ids,
    row_max,
    row_sum,
    col_max,
    col_sum,
    positive,
    first_row,
    last_row,
    N,
    D,
    offset,
    tiles,
    HAS_IDS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: of z = x_factor_i · y_factor_j · x_i·y_j the maximum and Σ e^{z − maximum} over the
        kept pairs without the positives, by row and (SYMMETRIC) by column; and the positives' z.
    Grid: (blocks of a panel's rows, column splits).
    Each program owns: BLOCK_M rows against `tiles` blocks of columns.
    FLOPs: 2·P·N·D. HBM bytes: rows and columns once per opposite block (mostly from L2); results
        8·P·splits, and 8·N per row block where SYMMETRIC.
    Accumulates in: float32; partial results are merged on the host in float64.
    Deterministic: yes, no atomics.
    Source: Radford et al. 2021, arXiv 2103.00020, figure 3; online maxima as in arXiv 1805.02867.
    """
    row = first_row + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_panel = row < last_row
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for tile in range(tiles):
        col = (tl.program_id(1) * tiles + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
        z = logit_tile(
            x, y, x_factor, y_factor, row, col, last_row, N, D,
            BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        is_positive = col[None, :] == (offset + row)[:, None]
        has_positive = tl.max(is_positive.to(tl.int32), axis=1) > 0
        own = tl.sum(tl.where(is_positive, z, 0.0), axis=1)
        tl.store(positive + row, own, mask=in_panel & has_positive)
        out = left_out(ids, row, col, last_row, N, offset, HAS_IDS) | (row >= last_row)[:, None]
        z = tl.where(out, float("-inf"), z)
        better = tl.maximum(best, tl.max(z, axis=1))
        anchor = tl.where(better == float("-inf"), 0.0, better)
        total = total * tl.exp(best - anchor) + tl.sum(tl.exp(z - anchor[:, None]), axis=1)
        best = better
        if SYMMETRIC:
            tallest = tl.max(z, axis=0)
            base = tl.where(tallest == float("-inf"), 0.0, tallest)
            at = tl.program_id(0).to(tl.int64) * N + col
            tl.store(col_max + at, tallest, mask=col < N)
            tl.store(col_sum + at, tl.sum(tl.exp(z - base[None, :]), axis=0), mask=col < N)
    at = (row - first_row).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(row_max + at, best, mask=in_panel)
    tl.store(row_sum + at, total, mask=in_panel)


@triton.jit
def contrastive_bwd_kernel(
    x,
    y,
    x_factor,
    y_factor,
    ids,
    row_lse,
    row_lse_low,
    col_lse,
    col_lse_low,
    row_weight,
    col_weight,
    at_positive,
    h,
    along,
    first_row,
    last_row,
    N,
    D,
    offset,
    h_scale,
    HAS_IDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: h = h_scale · H, H_ij = e^{z − Lr_i} + e^{z − Lc_j} − w_i − w_j where kept,
        at_positive_i on the positive, 0 elsewhere; and per tile Σ H_ij z_ij.
    Grid: (blocks of a panel's rows, blocks of columns).
    Each program owns: one BLOCK_M × BLOCK_N tile.
    FLOPs: 2·P·N·D. HBM bytes: as the forward's inputs, plus P·N elements of h written.
    Accumulates in: float32; h is rounded to its dtype once.
    Deterministic: yes, no atomics.
    Source: arXiv 2103.00020, figure 3; log-sum-exps in two parts so that |z| ~ 100 costs nothing.
    """
    row = first_row + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_panel, in_width = row < last_row, col < N
    z = logit_tile(
        x, y, x_factor, y_factor, row, col, last_row, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    of_row = z - tl.load(row_lse + row, mask=in_panel, other=0.0)[:, None]
    of_row = of_row - tl.load(row_lse_low + row, mask=in_panel, other=0.0)[:, None]
    of_col = z - tl.load(col_lse + col, mask=in_width, other=0.0)[None, :]
    of_col = of_col - tl.load(col_lse_low + col, mask=in_width, other=0.0)[None, :]
    gradient = tl.exp(of_row) + tl.exp(of_col)
    gradient = gradient - tl.load(row_weight + row, mask=in_panel, other=0.0)[:, None]
    gradient = gradient - tl.load(col_weight + col, mask=in_width, other=0.0)[None, :]
    out = left_out(ids, row, col, last_row, N, offset, HAS_IDS)
    gradient = tl.where(out, 0.0, gradient)
    diagonal = tl.load(at_positive + row, mask=in_panel, other=0.0)
    is_positive = col[None, :] == (offset + row)[:, None]
    gradient = tl.where(is_positive, diagonal[:, None], gradient)
    in_tile = in_panel[:, None] & in_width[None, :]
    at = (row - first_row).to(tl.int64)[:, None] * N + col[None, :]
    tl.store(h + at, (gradient * h_scale).to(h.dtype.element_ty), mask=in_tile)
    product = tl.where(in_tile, gradient * z, 0.0)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(along + program, tl.sum(tl.sum(product, axis=1), axis=0))


def forward(block: Block, *, top1: bool) -> SoftmaxForward:
    n, columns, device = len(block.x), len(block.y), block.x.device
    config = PAIR_CONFIGS[block.x.element_size()]
    x_inv = inverse_norms(block.x, block.normalize)
    y_inv = inverse_norms(block.y, block.normalize)
    x_factor = factors(block.logit_scale.to(x_inv.dtype).reshape(()) * x_inv)
    y_factor = factors(y_inv)
    positive = torch.empty(n, dtype=torch.float32, device=device)
    row_max, row_sum = torch.empty_like(x_inv), torch.empty_like(x_inv)
    col_max = torch.full_like(y_inv, -torch.inf)
    col_sum = torch.zeros_like(y_inv)
    for rows in panels(n, columns, _FORWARD_PAIRS):
        blocks = triton.cdiv(rows.stop - rows.start, config.BLOCK_M)
        splits, tiles = column_splits(blocks, triton.cdiv(columns, config.BLOCK_N))
        of_rows = torch.empty(2, rows.stop - rows.start, splits, device=device)
        of_cols = torch.empty(2, blocks if block.symmetric else 0, columns, device=device)
        contrastive_fwd_kernel[blocks, splits](
            block.x, block.y, x_factor, y_factor, block.ids, *of_rows, *of_cols, positive,
            rows.start, rows.stop, columns, block.x.shape[1], block.offset, tiles,
            HAS_IDS=block.ids is not None, SYMMETRIC=block.symmetric, **launch_options(config),
        )  # fmt: skip
        row_max[rows], row_sum[rows] = merge_sums(of_rows.to(x_inv.dtype), dim=1)
        if block.symmetric:
            so_far = torch.stack([col_max, col_sum])[:, None]
            partial = torch.cat([so_far, of_cols.to(y_inv.dtype)], dim=1)
            col_max, col_sum = merge_sums(partial, dim=0)
    own = positive.to(x_inv.dtype)
    none = own.new_empty(0)
    return SoftmaxForward(
        row_nll=_nll(row_max, row_sum, own),
        col_nll=_nll(col_max, col_sum, own) if block.symmetric else none,
        positive=own,
        x_inv_norm=x_inv,
        y_inv_norm=y_inv,
        row_hit=own >= row_max if top1 else none.bool(),
        col_hit=own >= col_max if top1 and block.symmetric else none.bool(),
    )


def backward(block: Block, saved: SoftmaxSaved, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, columns, device = len(block.x), len(block.y), block.x.device
    config = PAIR_CONFIGS[block.x.element_size()]
    own = slice(block.offset, block.offset + n)
    at_positive = torch.expm1(saved.positive - saved.row_lse)
    at_positive += torch.expm1(saved.positive - saved.col_lse[own])
    weights = [torch.zeros_like(saved.row_lse), torch.zeros_like(saved.col_lse)]
    if saved.row_smoothing is not None and saved.col_smoothing is not None:
        weights = [saved.row_smoothing, saved.col_smoothing]
        at_positive += 2 * saved.label_smoothing - weights[0] - weights[1][own]
    scale = block.logit_scale.to(saved.row_lse.dtype).reshape(())
    vectors = [
        *(factors(scale * saved.x_inv_norm), factors(saved.y_inv_norm), block.ids),
        *(*high_and_low(saved.row_lse), *high_and_low(saved.col_lse)),
        *(weights[0].float(), weights[1].float(), at_positive.float()),
    ]
    x_unit = unit_rows(block.x, saved.x_inv_norm, block.normalize)
    y_unit = unit_rows(block.y, saved.y_inv_norm, block.normalize)
    h_scale = panel_scale(block.x.dtype)
    d_x = torch.empty(block.x.shape, device=device)
    d_y = torch.zeros(block.y.shape if block.symmetric else (0,), device=device)
    along = torch.zeros_like(scale)
    for rows in panels(n, columns, _BACKWARD_PAIRS):
        count = rows.stop - rows.start
        grid = triton.cdiv(count, config.BLOCK_M), triton.cdiv(columns, config.BLOCK_N)
        h = torch.empty(count, columns, dtype=block.x.dtype, device=device)
        sums = torch.empty(grid, device=device)
        contrastive_bwd_kernel[grid](
            block.x, block.y, *vectors, h, sums,
            rows.start, rows.stop, columns, block.x.shape[1], block.offset, h_scale,
            HAS_IDS=block.ids is not None, **launch_options(config),
        )  # fmt: skip
        along += sums.sum(dtype=along.dtype)
        d_x[rows] = product(h, y_unit)
        if block.symmetric:
            d_y += product(h.T, x_unit[rows])
    outer = factor * scale / h_scale
    d_x, cosines = finish_gradient(d_x, block.x, saved.x_inv_norm, block.normalize, outer)
    if block.symmetric:
        d_y, _ = finish_gradient(d_y, block.y, saved.y_inv_norm, block.normalize, outer)
    # From the tiles, whose H is not rounded; a scale of 0 leaves nothing to divide.
    exact = torch.where(scale == 0, cosines / h_scale, along / torch.where(scale == 0, 1.0, scale))
    return d_x, d_y, factor * exact


# Pairs of a panel: the forward's holds N floats per row block, the backward's is the panel itself.
_FORWARD_PAIRS = 2**28
_BACKWARD_PAIRS = 2**25


def _nll(maximum: Tensor, total: Tensor, positive: Tensor) -> Tensor:
    """log(1 + Σ_others e^{z − positive}) of total = Σ_others e^{z − maximum}."""
    lse = torch.where(total == 0, -torch.inf, maximum + total.log())
    return -F.logsigmoid(positive - lse)
