"""The sigmoid loss's Triton backend: one sweep makes the loss and the gradient.

The host walks panels of P rows against all N columns; a kernel writes the panel of g = ∂loss/∂z in
the inputs' dtype, which two products of the vendor's library turn into gradients: 3 in all.

Shapes: n rows, N columns, D features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops.block import Block, SigmoidForward
from clipfast_kernels.ops.panel import finish_gradient, inverse_norms, panels, product
from clipfast_kernels.ops.triton_tile import (
    PAIR_CONFIGS,
    factors,
    launch_options,
    left_out,
    logit_tile,
    panel_scale,
    unit_rows,
    unusable,
)

__all__ = ["forward", "unusable"]

# Pairs of a panel of g.
_PAIRS = 2**25


@triton.jit
def log1p_of_unit(e):
    """log(1 + e) for 0 ≤ e ≤ 1 within 2e-7 of its value, tiny e included (our own fit)."""
    p = e * -0.0031639994122087955 + 0.019487686455249786
    p = p * e - 0.05626952648162842
    p = p * e + 0.10532950609922409
    p = p * e - 0.15263274312019348
    p = p * e + 0.19661018252372742
    p = p * e - 0.24951167404651642
    p = p * e + 0.33329665660858154
    p = p * e - 0.49999889731407166
    return (p * e + 1.0) * e


@triton.jit
def sigmoid_fwd_kernel(
    x,
    y,
    x_factor,
    y_factor,
    bias,
    ids,
    g,
    sums,
    first_row,
    last_row,
    N,
    D,
    offset,
    g_scale,
    HAS_IDS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Computes: of z = x_factor_i · y_factor_j · x_i·y_j + bias, negated on positives, per tile
        Σ softplus(z) over the kept pairs; with GRADIENT also g = g_scale · ∂/∂logit, Σ of that
        derivative, and Σ derivative · (logit without bias).
    Grid: (blocks of a panel's rows, blocks of columns).
    Each program owns: one BLOCK_M × BLOCK_N tile; sums (3, row blocks, column blocks).
    FLOPs: 2·P·N·D. HBM bytes: rows and columns once per opposite block (mostly from L2), plus P·N
        elements of g written with GRADIENT.
    Accumulates in: float32 within a tile, float64 over tiles on the host.
    Deterministic: yes, no atomics.
    Source: Zhai et al. 2023, arXiv 2303.15343, algorithm 1.
    """
    row = first_row + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_panel, in_width = row < last_row, col < N
    logit = logit_tile(
        x, y, x_factor, y_factor, row, col, last_row, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    is_positive = col[None, :] == (offset + row)[:, None]
    out = left_out(ids, row, col, last_row, N, offset, HAS_IDS) & (is_positive == 0)
    kept = in_panel[:, None] & in_width[None, :] & (out == 0)
    sign = tl.where(is_positive, -1.0, 1.0)
    z = (logit + tl.load(bias)) * sign
    # softplus(z) = max(z, 0) + log(1 + e), σ(z) = (1 or e) / (1 + e), with e = e^{−|z|} ≤ 1.
    e = tl.exp(-tl.abs(z))
    positive_part = tl.where(z == z, tl.maximum(z, 0.0), z)
    loss = tl.where(kept, positive_part + log1p_of_unit(e), 0.0)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    programs = tl.num_programs(0) * tl.num_programs(1)
    tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0))
    if GRADIENT:
        derivative = tl.where(z >= 0, 1.0, e) / (1.0 + e) * sign
        derivative = tl.where(kept, derivative, 0.0)
        at = (row - first_row).to(tl.int64)[:, None] * N + col[None, :]
        in_tile = in_panel[:, None] & in_width[None, :]
        tl.store(g + at, (derivative * g_scale).to(g.dtype.element_ty), mask=in_tile)
        tl.store(sums + programs + program, tl.sum(tl.sum(derivative, axis=1), axis=0))
        along = tl.where(kept, derivative * logit, 0.0)
        tl.store(sums + 2 * programs + program, tl.sum(tl.sum(along, axis=1), axis=0))


def forward(block: Block, logit_bias: Tensor, *, gradient: bool) -> SigmoidForward:
    n, columns, device = len(block.x), len(block.y), block.x.device
    config = PAIR_CONFIGS[block.x.element_size()]
    x_inv = inverse_norms(block.x, block.normalize)
    y_inv = inverse_norms(block.y, block.normalize)
    scale = block.logit_scale.to(x_inv.dtype).reshape(())
    bias = logit_bias.float().reshape(1)
    x_factor, y_factor = factors(scale * x_inv), factors(y_inv)
    g_scale = panel_scale(block.x.dtype)
    totals = torch.zeros(3, dtype=x_inv.dtype, device=device)
    d_x = torch.empty(block.x.shape if gradient else (0,), device=device)
    wants_y = gradient and block.symmetric
    d_y = torch.zeros(block.y.shape if wants_y else (0,), device=device)
    if gradient:
        x_unit = unit_rows(block.x, x_inv, block.normalize)
        y_unit = unit_rows(block.y, y_inv, block.normalize)
    for rows in panels(n, columns, _PAIRS):
        count = rows.stop - rows.start
        grid = triton.cdiv(count, config.BLOCK_M), triton.cdiv(columns, config.BLOCK_N)
        g = torch.empty(count if gradient else 0, columns, dtype=block.x.dtype, device=device)
        sums = torch.zeros(3, *grid, device=device)
        sigmoid_fwd_kernel[grid](
            block.x, block.y, x_factor, y_factor, bias, block.ids, g, sums,
            rows.start, rows.stop, columns, block.x.shape[1], block.offset, g_scale,
            HAS_IDS=block.ids is not None, GRADIENT=gradient, **launch_options(config),
        )  # fmt: skip
        totals += sums.to(totals.dtype).sum(dim=(1, 2))
        if gradient:
            d_x[rows] = product(g, y_unit)
        if wants_y:
            d_y += product(g.T, x_unit[rows])
    loss, d_bias, along = totals
    d_scale = torch.zeros_like(scale)
    if gradient:
        outer = scale / g_scale
        d_x, cosines = finish_gradient(d_x, block.x, x_inv, block.normalize, outer)
        divisor = torch.where(scale == 0, 1.0, scale)
        d_scale = torch.where(scale == 0, cosines / g_scale, along / divisor)
        if wants_y:
            d_y, _ = finish_gradient(d_y, block.y, y_inv, block.normalize, outer)
    return SigmoidForward(loss, d_x, d_y, d_scale, d_bias)
