"""Attention on the CPU: the compiled kernel of ``csrc/cpu/attention.cpp``.

The schemas here exist with or without the kernel. T tokens, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops import cpu_inputs
from clipfast_kernels.ops.attention.sequences import Sequences

__all__ = ["backward", "forward", "unusable"]

_HEAD_WIDTH = 16  # the widest vector; head widths are multiples of it

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? cu_q, Tensor? cu_k, int batch, bool causal, float scale"
)
torch.library.define(
    "clipfast_kernels::attention_fwd_cpu", f"({_ARGUMENTS}, Tensor(a!) out, Tensor(b!) lse) -> ()"
)
torch.library.define(
    "clipfast_kernels::attention_bwd_cpu",
    f"({_ARGUMENTS}, Tensor out, Tensor lse, Tensor d_out,"
    " Tensor(a!) d_q, Tensor(b!) d_k, Tensor(c!) d_v) -> ()",
)


def unusable(*tensors: Tensor) -> list[str]:
    reasons = cpu_inputs.unusable(*(t for t in tensors if t.is_floating_point()))
    widths = {t.shape[-1] for t in tensors if t.is_floating_point()}
    for width in sorted(w for w in widths if w % _HEAD_WIDTH):
        reasons.append(f"the head width is {width}, and this backend takes multiples of 16")
    return reasons


def forward(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """out (T_q, H, D) and lse (H, T_q)."""
    dtype = q.dtype
    q, k, v = _computed(q), _computed(k), _computed(v)
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[1], q.shape[0])
    torch.ops.clipfast_kernels.attention_fwd_cpu(q, k, v, *_of_kernel(sequences), out, lse)
    return out.to(dtype), lse


def backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    sequences: Sequences,
) -> None:
    """Fills d_q, d_k and d_v."""
    gradients = [d_q, d_k, d_v]
    computed = [_computed_like(g) for g in gradients]
    torch.ops.clipfast_kernels.attention_bwd_cpu(
        *(_computed(x) for x in (q, k, v)),
        *_of_kernel(sequences),
        _computed(out),
        lse,
        _computed(d_out),
        *computed,
    )
    for gradient, wide in zip(gradients, computed, strict=True):
        if wide is not gradient:
            gradient.copy_(wide)


def _of_kernel(
    sequences: Sequences,
) -> tuple[Tensor | None, Tensor | None, int, bool, float]:
    return (
        sequences.cu_q,
        sequences.cu_k,
        sequences.batch,
        sequences.causal,
        sequences.scale,
    )


def _computed(x: Tensor) -> Tensor:
    """As the kernel takes it: half precision is computed in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _computed_like(x: Tensor) -> Tensor:
    wide = x.dtype in (torch.float32, torch.float64)
    return x if wide else torch.empty_like(x, dtype=torch.float32)
