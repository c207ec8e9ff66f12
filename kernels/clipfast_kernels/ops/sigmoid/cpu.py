"""The sigmoid loss's sweep on the CPU: the compiled kernel of ``csrc/cpu/sigmoid.cpp``.

The schema here exists with or without the kernel, and is not differentiable: the gradient is one of
its results. Shapes as in ``ops/block.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.block import Block, SigmoidForward
from clipfast_kernels.ops.cpu_inputs import computed, unusable

__all__ = ["forward", "unusable"]

torch.library.define(
    "clipfast_kernels::sigmoid_fwd_cpu",
    "(Tensor x, Tensor y, Tensor logit_scale, Tensor logit_bias, Tensor? ids, int offset,"
    " bool normalize, bool symmetric, bool gradient)"
    " -> (Tensor loss, Tensor d_x, Tensor d_y, Tensor d_scale, Tensor d_bias)",
)


def forward(block: Block, logit_bias: Tensor, *, gradient: bool) -> SigmoidForward:
    """Without `gradient`, d_scale and d_bias are zeros."""
    swept = torch.ops.clipfast_kernels.sigmoid_fwd_cpu(
        computed(block.x),
        computed(block.y),
        block.logit_scale,
        logit_bias,
        None if block.ids is None else block.ids.contiguous(),
        block.offset,
        block.normalize,
        block.symmetric,
        gradient,
    )
    return SigmoidForward(*swept)
