"""x·σ(1.702 x) on the CPU: the compiled kernel of ``csrc/cpu/quick_gelu.cpp``.

The schemas here exist with or without the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.cpu_inputs import computed, unusable

__all__ = ["backward", "forward", "unusable"]

torch.library.define("clipfast_kernels::quick_gelu_fwd_cpu", "(Tensor x, Tensor(a!) y) -> ()")
torch.library.define(
    "clipfast_kernels::quick_gelu_bwd_cpu", "(Tensor d_y, Tensor x, Tensor(a!) d_x) -> ()"
)


def forward(x: Tensor) -> Tensor:
    wide = computed(x)
    y = torch.empty_like(wide)
    torch.ops.clipfast_kernels.quick_gelu_fwd_cpu(wide, y)
    return y.to(x.dtype)


def backward(d_y: Tensor, x: Tensor) -> Tensor:
    wide = computed(x)
    d_x = torch.empty_like(wide)
    torch.ops.clipfast_kernels.quick_gelu_bwd_cpu(computed(d_y), wide, d_x)
    return d_x.to(x.dtype)
