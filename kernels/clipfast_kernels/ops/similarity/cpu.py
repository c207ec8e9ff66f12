"""The similarity search on the CPU: the compiled kernel of ``csrc/cpu/similarity.cpp``.

The schema here exists with or without the kernel, and is not differentiable. Shapes: n queries,
N keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.cpu_inputs import computed, unusable

__all__ = ["forward", "unusable"]

# The positive, the rank and the top-k are empty where not asked for.
torch.library.define(
    "clipfast_kernels::similarity_fwd_cpu",
    "(Tensor queries, Tensor keys, Tensor scale, Tensor? positives, int topk)"
    " -> (Tensor logsumexp, Tensor positive, Tensor rank, Tensor values, Tensor indices)",
)


def forward(
    queries: Tensor, keys: Tensor, scale: Tensor, positives: Tensor | None, topk: int
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """logsumexp (n,), positive (n,), rank (n,), values (n, k), indices (n, k)."""
    logsumexp, positive, rank, values, indices = torch.ops.clipfast_kernels.similarity_fwd_cpu(
        computed(queries),
        computed(keys),
        scale,
        None if positives is None else positives.contiguous(),
        topk,
    )
    return (
        logsumexp,
        None if positives is None else positive,
        None if positives is None else rank,
        values if topk else None,
        indices if topk else None,
    )
