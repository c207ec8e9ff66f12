"""The sigmoid loss's sweep in plain torch, a panel of rows at a time: any device.

Shapes: n rows, N columns, D features, P rows of a panel. FLOPs: one product for the loss, one or
two more for the gradients, which the same sweep makes. Deterministic as far as torch's products
are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast_kernels.ops.block import Block, SigmoidForward
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


def forward(block: Block, logit_bias: Tensor, *, gradient: bool) -> SigmoidForward:
    n, columns = len(block.x), len(block.y)
    device, dtype, wide = block.x.device, compute_dtype(block.x), wide_dtype(block.x.device)
    x_inv = inverse_norms(block.x, block.normalize)
    y_inv = inverse_norms(block.y, block.normalize)
    scale = block.logit_scale.to(wide).reshape(())
    bias = logit_bias.to(dtype).reshape(())
    index = torch.arange(columns, device=device)
    loss, d_bias = torch.zeros((), dtype=wide, device=device), torch.zeros_like(scale)
    d_x = torch.empty(block.x.shape if gradient else (0,), dtype=dtype, device=device)
    wants_y = gradient and block.symmetric
    d_y = torch.zeros(block.y.shape if wants_y else (0,), dtype=dtype, device=device)
    for rows in panels(n, columns):
        own = slice(block.offset + rows.start, block.offset + rows.stop)
        z_PN = product(block.x[rows], block.y.T)
        z_PN *= (scale * x_inv[rows, None]).to(dtype)
        z_PN = z_PN.mul_(y_inv.to(dtype)).add_(bias)
        sign_PN = torch.where(index[own, None] == index, -1.0, 1.0)
        kept_PN: Tensor | None = None
        if block.ids is not None:
            kept_PN = (sign_PN < 0) | (block.ids[own][:, None] != block.ids)
        z_PN *= sign_PN
        terms_PN = -F.logsigmoid(-z_PN)
        loss += (terms_PN if kept_PN is None else terms_PN * kept_PN).sum(dtype=wide)
        if not gradient:
            continue
        g_PN = z_PN.sigmoid_().mul_(sign_PN)
        if kept_PN is not None:
            g_PN *= kept_PN
        d_bias += g_PN.sum(dtype=wide)
        d_x[rows] = product(as_factor(g_PN * y_inv.to(dtype), block.y), block.y)
        if block.symmetric:
            g_PN *= x_inv[rows, None].to(dtype)
            d_y += product(as_factor(g_PN, block.x).T, block.x[rows])
    d_scale = torch.zeros_like(scale)
    if gradient:
        d_x, d_scale = finish_gradient(d_x, block.x, x_inv, block.normalize, scale)
    if wants_y:
        d_y, _ = finish_gradient(d_y, block.y, y_inv, block.normalize, scale)
    return SigmoidForward(loss, d_x, d_y, d_scale, d_bias)
