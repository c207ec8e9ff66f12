"""Batch normalisation as the formula stands, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor


def unusable(*tensors: Tensor) -> list[str]:
    return []


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor] | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and biased variance by which it was normalised; the batch's if None."""
    dims = [d for d in range(x.ndim) if d != 1]
    wide = x if x.dtype == torch.float64 else x.float()
    if statistics is None:
        statistics = wide.mean(dims), wide.var(dims, correction=0)
    mean, var = statistics
    channels = (-1, *[1] * (x.ndim - 2))
    unit = (wide - mean.view(channels)) * (var + eps).rsqrt().view(channels)
    y = unit * weight.view(channels) + bias.view(channels)
    y = y.relu() if relu else y
    return y.to(x.dtype), mean.detach(), var.detach()
