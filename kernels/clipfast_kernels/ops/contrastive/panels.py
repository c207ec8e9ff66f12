"""The contrastive loss's sweeps in plain torch, a panel of rows at a time: any device.

Shapes: n rows, N columns, D features, P rows of a panel. FLOPs: one product forward, three (two
where only rows count) backward. Deterministic as far as torch's products are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast_kernels.ops.block import Block, SoftmaxForward, SoftmaxSaved
from clipfast_kernels.ops.panel import (
    as_factor,
    compute_dtype,
    finish_gradient,
    inverse_norms,
    panels,
    product,
    wide_dtype,
)


def unusable(*tensors: Tensor) -> list[str]:
    return []


def forward(block: Block, *, top1: bool) -> SoftmaxForward:
    n, columns = len(block.x), len(block.y)
    x_inv = inverse_norms(block.x, block.normalize)
    y_inv = inverse_norms(block.y, block.normalize)
    positive, others_lse = torch.empty_like(x_inv), torch.empty_like(x_inv)
    row_max = torch.empty_like(x_inv) if top1 else x_inv.new_empty(0)
    dtype = compute_dtype(block.x)
    col_max = torch.full((columns,), -torch.inf, dtype=dtype, device=block.x.device)
    col_sum = torch.zeros_like(y_inv)
    for rows in panels(n, columns):
        z_PN = _logits(block, rows, x_inv, y_inv)
        positive[rows] = _own(block, rows, z_PN).to(positive.dtype)
        z_PN.masked_fill_(_left_out(block, rows, z_PN), -torch.inf)
        others_lse[rows] = z_PN.logsumexp(dim=1).to(others_lse.dtype)
        if top1:
            row_max[rows] = z_PN.amax(dim=1).to(row_max.dtype)
        if block.symmetric:
            panel_max = torch.maximum(col_max, z_PN.amax(dim=0))
            anchor = panel_max.nan_to_num(nan=torch.nan, neginf=0.0)
            col_sum *= (col_max - anchor).exp().to(col_sum.dtype)
            col_sum += z_PN.sub_(anchor).exp_().sum(dim=0).to(col_sum.dtype)
            col_max = panel_max
    row_nll = -F.logsigmoid(positive - others_lse)
    row_hit = positive >= row_max if top1 else positive.new_empty(0, dtype=torch.bool)
    empty = positive.new_empty(0)
    if not block.symmetric:
        return SoftmaxForward(row_nll, empty, positive, x_inv, y_inv, row_hit, empty.bool())
    col_lse = col_max.to(col_sum.dtype) + col_sum.log()
    others_lse = torch.where(col_sum == 0, -torch.inf, col_lse)
    col_nll = -F.logsigmoid(positive - others_lse)
    col_hit = positive >= col_max.to(positive.dtype) if top1 else empty.bool()
    return SoftmaxForward(row_nll, col_nll, positive, x_inv, y_inv, row_hit, col_hit)


def backward(block: Block, saved: SoftmaxSaved, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, columns = len(block.x), len(block.y)
    dtype = compute_dtype(block.x)
    d_x = torch.empty(block.x.shape, dtype=dtype, device=block.x.device)
    d_y = torch.zeros(block.y.shape if block.symmetric else (0,), dtype=dtype, device=d_x.device)
    own = slice(block.offset, block.offset + n)
    # p − 1 as expm1: a well-learned pair's gradient does not drown in rounding.
    at_positive = torch.expm1(saved.positive - saved.row_lse)
    at_positive += torch.expm1(saved.positive - saved.col_lse[own])
    if saved.row_smoothing is not None and saved.col_smoothing is not None:
        at_positive += 2 * saved.label_smoothing - saved.row_smoothing - saved.col_smoothing[own]
    for rows in panels(n, columns):
        z_PN = _logits(block, rows, saved.x_inv_norm, saved.y_inv_norm)
        h_PN = (z_PN - saved.row_lse[rows, None].to(dtype)).exp_()
        h_PN += z_PN.sub_(saved.col_lse.to(dtype)).exp_()
        if saved.row_smoothing is not None and saved.col_smoothing is not None:
            h_PN -= saved.row_smoothing[rows, None].to(dtype)
            h_PN -= saved.col_smoothing.to(dtype)
        h_PN.masked_fill_(_left_out(block, rows, h_PN), 0.0)
        _own(block, rows, h_PN).copy_(at_positive[rows])
        d_x[rows] = product(as_factor(h_PN * saved.y_inv_norm.to(dtype), block.y), block.y)
        if block.symmetric:
            h_PN *= saved.x_inv_norm[rows, None].to(dtype)
            d_y += product(as_factor(h_PN, block.x).T, block.x[rows])
    scale = block.logit_scale.to(wide_dtype(d_x.device)).reshape(())
    d_x, along = finish_gradient(d_x, block.x, saved.x_inv_norm, block.normalize, factor * scale)
    if block.symmetric:
        d_y, _ = finish_gradient(d_y, block.y, saved.y_inv_norm, block.normalize, factor * scale)
    return d_x, d_y, factor * along


def _logits(block: Block, rows: slice, x_inv: Tensor, y_inv: Tensor) -> Tensor:
    z_PN = product(block.x[rows], block.y.T)
    z_PN *= (block.logit_scale.to(x_inv.dtype).reshape(()) * x_inv[rows, None]).to(z_PN.dtype)
    z_PN *= y_inv.to(z_PN.dtype)
    return z_PN


def _own(block: Block, rows: slice, panel_PN: Tensor) -> Tensor:
    """A view of the panel's positives."""
    return panel_PN.diagonal(block.offset + rows.start)


def _left_out(block: Block, rows: slice, panel_PN: Tensor) -> Tensor:
    """(P, N) bool: the positive, and the columns whose ids are the row's."""
    columns = torch.arange(panel_PN.shape[1], device=panel_PN.device)
    own = columns[block.offset + rows.start : block.offset + rows.stop]
    if block.ids is None:
        return own[:, None] == columns
    return block.ids[own][:, None] == block.ids
