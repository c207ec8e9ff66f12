"""Batch normalisation on the CPU: the compiled kernel of ``csrc/cpu/batch_norm.cpp``.

The schemas here exist with or without the kernel. R rows: one per image and place; C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops import cpu_inputs
from clipfast_kernels.ops.cpu_inputs import computed

__all__ = ["backward", "forward", "unusable"]

_MAP = "Tensor x, Tensor mean, Tensor gain, Tensor bias, bool relu"
torch.library.define(
    "clipfast_kernels::batch_norm_moments_cpu", "(Tensor x, Tensor(a!) moments) -> ()"
)
torch.library.define("clipfast_kernels::batch_norm_fwd_cpu", f"({_MAP}, Tensor(a!) y) -> ()")
torch.library.define(
    "clipfast_kernels::batch_norm_sums_cpu", f"(Tensor d_y, {_MAP}, Tensor(a!) sums) -> ()"
)
torch.library.define(
    "clipfast_kernels::batch_norm_bwd_cpu",
    f"(Tensor d_y, {_MAP}, Tensor offset, Tensor slope, Tensor(a!) d_x) -> ()",
)


def unusable(*tensors: Tensor) -> list[str]:
    reasons = cpu_inputs.unusable(*tensors)
    for x in tensors[:1]:
        if x.ndim == 4 and not x.is_contiguous(memory_format=torch.channels_last):
            reasons.append("x is not channels-last, and this backend takes no other layout")
        if x.ndim not in (2, 4):
            reasons.append(f"x has {x.ndim} dimensions, and this backend takes 2 or 4")
    return reasons


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor] | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y like x, and mean and biased variance (C,), which are the batch's if None is given."""
    rows = computed(_rows(x))
    if statistics is None:
        moments = torch.empty(2, rows.shape[1], dtype=torch.float64)
        torch.ops.clipfast_kernels.batch_norm_moments_cpu(rows, moments)
        mean, var = moments
    else:
        mean, var = (s.double() for s in statistics)
    y = torch.empty_like(rows)
    channel_map = _channel_map(mean, var, weight, bias, eps, rows.dtype)
    torch.ops.clipfast_kernels.batch_norm_fwd_cpu(rows, *channel_map, relu, y)
    return _like(y, x), mean.to(rows.dtype), var.to(rows.dtype)


def backward(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
    of_batch: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_x like x, d_weight and d_bias (C,). `of_batch`: mean and variance depend on x."""
    rows, d_rows = computed(_rows(x)), computed(_rows(d_y))
    channel_map = _channel_map(mean, var, weight, bias, eps, rows.dtype)
    sums = torch.empty(2, rows.shape[1], dtype=torch.float64)
    torch.ops.clipfast_kernels.batch_norm_sums_cpu(d_rows, rows, *channel_map, relu, sums)
    plain, centred = sums
    offset, slope = torch.zeros(2, rows.shape[1], dtype=rows.dtype)
    precision = 1 / (var.double() + eps)
    if of_batch:
        offset = (plain / len(rows)).to(rows.dtype)
        slope = (centred * precision / len(rows)).to(rows.dtype)
    d_x = torch.empty_like(rows)
    torch.ops.clipfast_kernels.batch_norm_bwd_cpu(
        d_rows, rows, *channel_map, relu, offset, slope, d_x
    )
    d_weight = (centred * precision.sqrt()).to(weight.dtype)
    return _like(d_x, x), d_weight, plain.to(bias.dtype)


def _channel_map(
    mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's mean, gain and bias."""
    gain = weight.double() * (var.double() + eps).rsqrt()
    return mean.to(dtype).contiguous(), gain.to(dtype), bias.to(dtype).contiguous()


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) or (B, C) -> (R, C), without a copy where x is channels-last."""
    return x if x.ndim == 2 else x.permute(0, 2, 3, 1).flatten(0, 2)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    if x.ndim == 4:
        images, _, height, width = x.shape
        rows = rows.unflatten(0, (images, height, width)).permute(0, 3, 1, 2)
    return rows.to(x.dtype)
