"""`gathered_similarity`'s sweep in plain torch, a panel of queries at a time: any device.

Shapes: n queries, N keys, D features, P queries of a panel. FLOPs: one product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.ops.panel import compute_dtype, panels, product


def unusable(*tensors: Tensor) -> list[str]:
    return []


def forward(
    queries: Tensor, keys: Tensor, scale: Tensor, positives: Tensor | None, topk: int
) -> tuple[Tensor | None, ...]:
    n, dtype, device = len(queries), compute_dtype(queries), queries.device
    logsumexp = torch.empty(n, dtype=dtype, device=device)
    positive = rank = values = indices = None
    if positives is not None:
        positive = torch.empty_like(logsumexp)
        rank = torch.empty(n, dtype=torch.int64, device=device)
    if topk:
        values = torch.empty(n, topk, dtype=dtype, device=device)
        indices = torch.empty(n, topk, dtype=torch.int64, device=device)
    for rows in panels(n, len(keys)):
        z_PN = product(queries[rows], keys.T).mul_(scale.to(dtype).reshape(()))
        logsumexp[rows] = z_PN.logsumexp(dim=1)
        if positives is not None and positive is not None and rank is not None:
            own = z_PN.gather(1, positives[rows, None])
            positive[rows] = own[:, 0]
            more = (z_PN > own).sum(dim=1)
            rank[rows] = torch.where(own[:, 0].isnan(), len(keys), more)
        if values is not None and indices is not None:
            values[rows], indices[rows] = _largest(z_PN, topk)
    return logsumexp, positive, rank, values, indices


def _largest(z_PN: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The topk largest by rows, of equal ones the first; NaN left out."""
    is_nan = z_PN.isnan()
    z_PN = z_PN.masked_fill(is_nan, -torch.inf)
    # One more shows whether the last place is tied; torch.topk leaves open which of them it takes.
    values, indices = z_PN.topk(min(topk + 1, z_PN.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    values, indices = values[:, :topk], indices[:, :topk]
    if tied.any():
        again = z_PN[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = again.values[:, :topk], again.indices[:, :topk]
    return values, indices.masked_fill(is_nan.gather(1, indices), -1)
