"""Panels of a pair matrix in plain torch: what the torch and the Triton backends have in common.

Shapes: n rows, N columns, D features; a panel is P rows against all N columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Of one (P, N) array; a backend holds a few of them.
PANEL_ELEMENTS = 2**22


def wide_dtype(device: torch.device) -> torch.dtype:
    """For vectors of N: float64, except where there is none (Apple's GPUs)."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(x: Tensor) -> torch.dtype:
    """Logits and losses of x: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def panels(rows: int, columns: int, elements: int = PANEL_ELEMENTS) -> Iterator[slice]:
    """Slices of rows, each of at most `elements` pairs but at least one row."""
    size = max(1, elements // max(columns, 1))
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with float32 sums and result for 16-bit inputs, which stay 16-bit on a GPU."""
    if a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def as_factor(panel: Tensor, features: Tensor) -> Tensor:
    """A float32 panel as `product` wants it beside these features: 16-bit where a GPU gains."""
    return panel.to(features.dtype) if features.is_cuda else panel


def inverse_norms(x: Tensor, normalize: bool) -> Tensor:
    """(rows,) 1/‖x‖, 0 for a row that is zero, ones without normalisation."""
    wide = wide_dtype(x.device)
    if not normalize:
        return torch.ones(len(x), dtype=wide, device=x.device)
    norm = torch.empty(len(x), dtype=wide, device=x.device)
    for rows in panels(*x.shape):
        norm[rows] = x[rows].to(wide).square().sum(dim=1).sqrt()
    # Below this its inverse times a logit scale would overflow.
    is_zero = norm < 1e8 * torch.finfo(compute_dtype(x)).tiny
    return torch.where(is_zero, 0.0, 1 / torch.where(is_zero, 1.0, norm))


def paired_dots(x: Tensor, y: Tensor) -> Tensor:
    """(rows,) x_i·y_i."""
    wide = wide_dtype(x.device)
    dots = torch.empty(len(x), dtype=wide, device=x.device)
    for rows in panels(*x.shape):
        dots[rows] = (x[rows].to(wide) * y[rows].to(wide)).sum(dim=1)
    return dots


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """(D,) Σ_i weights_i x_i, in the weights' precision."""
    total = weights.new_zeros(x.shape[1])
    for rows in panels(*x.shape):
        total += weights[rows] @ x[rows].to(weights.dtype)
    return total


def finish_gradient(
    d: Tensor, x: Tensor, inv_norm: Tensor, normalize: bool, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Turns d = ∂/∂x̂ into the gradient of x, in place.

    Args:
        d: (rows, D), overwritten by factor · (d − (x̂·d) x̂) / ‖x‖, or factor · d.
        x, inv_norm: the rows and their inverse norms.
        factor: 0-dim.

    Returns:
        The gradient, and Σ_i x̂_i·d_i.
    """
    along = paired_dots(x, d) * inv_norm
    if normalize:
        scale, back = factor * inv_norm, factor * along * inv_norm.square()
        for rows in panels(*x.shape):
            d[rows] *= scale[rows, None].to(d.dtype)
            d[rows] -= back[rows, None].to(d.dtype) * x[rows].to(d.dtype)
    else:
        d *= factor.to(d.dtype)
    return d, along.sum()
