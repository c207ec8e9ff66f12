"""The contrastive loss's sweeps on the CPU: the compiled kernels of ``csrc/cpu/contrastive.cpp``.

The schemas here exist with or without the kernels. None of the operators is differentiable: the
gradient is ``operator.py``'s, which calls `forward` and `backward`. Shapes as in ``ops/block.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.block import Block, SoftmaxForward, SoftmaxSaved
from clipfast_kernels.ops.cpu_inputs import computed, unusable

__all__ = ["backward", "forward", "unusable"]

_NAMESPACE = "clipfast_kernels"

torch.library.define(
    f"{_NAMESPACE}::contrastive_fwd_cpu",
    "(Tensor x, Tensor y, Tensor logit_scale, Tensor? ids, int offset, bool normalize,"
    " bool symmetric, bool top1)"
    " -> (Tensor row_nll, Tensor col_nll, Tensor positive, Tensor x_inv_norm, Tensor y_inv_norm,"
    " Tensor row_hit, Tensor col_hit)",
)
torch.library.define(
    f"{_NAMESPACE}::contrastive_bwd_cpu",
    "(Tensor factor, Tensor x, Tensor y, Tensor logit_scale, Tensor? ids, int offset,"
    " bool normalize, bool symmetric, Tensor x_inv_norm, Tensor y_inv_norm, Tensor row_lse,"
    " Tensor col_lse, Tensor positive, Tensor? row_smoothing, Tensor? col_smoothing,"
    " float label_smoothing)"
    " -> (Tensor d_x, Tensor d_y, Tensor d_scale)",
)


def forward(block: Block, *, top1: bool) -> SoftmaxForward:
    swept = torch.ops.clipfast_kernels.contrastive_fwd_cpu(
        computed(block.x),
        computed(block.y),
        block.logit_scale,
        None if block.ids is None else block.ids.contiguous(),
        block.offset,
        block.normalize,
        block.symmetric,
        top1,
    )
    return SoftmaxForward(*swept)


def backward(block: Block, saved: SoftmaxSaved, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    *vectors, row_smoothing, col_smoothing, label_smoothing = saved
    return torch.ops.clipfast_kernels.contrastive_bwd_cpu(
        factor,
        computed(block.x),
        computed(block.y),
        block.logit_scale,
        None if block.ids is None else block.ids.contiguous(),
        block.offset,
        block.normalize,
        block.symmetric,
        *(vector.contiguous() for vector in vectors),
        None if row_smoothing is None else row_smoothing.contiguous(),
        None if col_smoothing is None else col_smoothing.contiguous(),
        label_smoothing,
    )
