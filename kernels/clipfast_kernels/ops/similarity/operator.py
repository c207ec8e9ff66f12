"""`gathered_similarity` as a torch operator, so that torch.compile takes it whole. No gradient.

Shapes: n queries, N keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.panel import compute_dtype

_NAME = "clipfast_kernels::gathered_similarity"

# What was not asked for is empty.
torch.library.define(
    _NAME,
    "(Tensor queries, Tensor keys, Tensor scale, Tensor? positives, int topk, str backend)"
    " -> (Tensor logsumexp, Tensor positive, Tensor rank, Tensor values, Tensor indices)",
)


@torch.library.impl(_NAME, "CompositeExplicitAutograd")
def _similarity(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    positives: Tensor | None,
    topk: int,
    backend: str,
) -> tuple[Tensor, ...]:
    from clipfast_kernels.ops.similarity.api import BACKENDS

    if positives is not None and not 0 <= positives.min() <= positives.max() < len(keys):
        raise ValueError(
            f"positives: expected key indices from 0 to {len(keys) - 1}; "
            f"got {positives.min()} to {positives.max()}"
        )
    with torch.autocast(queries.device.type, enabled=False):
        found = BACKENDS.modules[backend]().forward(queries, keys, scale, positives, topk)
    lse, positive, rank, values, indices = found
    return (
        lse,
        lse.new_empty(0) if positive is None else positive,
        lse.new_empty(0, dtype=torch.int64) if rank is None else rank,
        lse.new_empty(0) if values is None else values.contiguous(),
        lse.new_empty(0, dtype=torch.int64) if indices is None else indices.contiguous(),
    )


@torch.library.register_fake(_NAME)
def _(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    positives: Tensor | None,
    topk: int,
    backend: str,
) -> tuple[Tensor, ...]:
    n, dtype = len(queries), compute_dtype(queries)
    ranked = n if positives is not None else 0
    best = (n, topk) if topk else (0,)
    return (
        queries.new_empty(n, dtype=dtype),
        queries.new_empty(ranked, dtype=dtype),
        queries.new_empty(ranked, dtype=torch.int64),
        queries.new_empty(best, dtype=dtype),
        queries.new_empty(best, dtype=torch.int64),
    )
