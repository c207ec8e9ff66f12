"""`gathered_similarity` as its definition stands: dense, any device. n queries, N keys."""

from __future__ import annotations

import torch
from torch import Tensor


def unusable(*tensors: Tensor) -> list[str]:
    return []


def forward(
    queries: Tensor, keys: Tensor, scale: Tensor, positives: Tensor | None, topk: int
) -> tuple[Tensor | None, ...]:
    dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
    z_nN = scale.to(dtype).reshape(()) * (queries.to(dtype) @ keys.to(dtype).T)
    positive = rank = values = indices = None
    if positives is not None:
        positive = z_nN.gather(1, positives[:, None])
        rank = (z_nN > positive).sum(dim=1)
        positive = positive[:, 0]
        rank = torch.where(positive.isnan(), z_nN.shape[1], rank)
    if topk:
        order = z_nN.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        values, indices = (x[:, :topk] for x in order.sort(dim=1, descending=True, stable=True))
        indices = indices.masked_fill(z_nN.gather(1, indices).isnan(), -1)
    return z_nN.logsumexp(dim=1), positive, rank, values, indices
