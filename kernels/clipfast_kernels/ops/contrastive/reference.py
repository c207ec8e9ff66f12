"""The contrastive loss as the formula stands: dense, differentiable to any order, any device.

Every other backend is measured against this one in float64. N pairs, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unusable(*tensors: Tensor) -> list[str]:
    return []


def unit_rows(x_ND: Tensor) -> Tensor:
    """x / ‖x‖ by rows; a zero row stays zero and gets a zero gradient."""
    squared = x_ND.square().sum(dim=1, keepdim=True)
    is_zero = squared == 0
    inverse = torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).rsqrt())
    return x_ND * inverse


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    normalize: bool,
    ids: Tensor | None,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """The loss, and the metrics (image_top1, text_top1, positive_logit)."""
    dtype = torch.float64 if image_features.dtype == torch.float64 else torch.float32
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = image_features.to(dtype), text_features.to(dtype)
        if normalize:
            image, text = unit_rows(image), unit_rows(text)
        logits_NN = logit_scale.to(dtype).reshape(()) * (image @ text.T)
        kept = kept_pairs(logits_NN, ids)
        both = [one_direction(z, kept, label_smoothing) for z in (logits_NN, logits_NN.T)]
        loss = (both[0] + both[1]) / 2
        positive = logits_NN.diagonal().detach()
        others = logits_NN.detach().masked_fill(~kept, -torch.inf)
        hits = [(positive >= others.amax(dim=d)).to(dtype).mean() for d in (1, 0)]
        return loss, torch.stack([*hits, positive.mean()])


def kept_pairs(logits_NN: Tensor, ids: Tensor | None) -> Tensor:
    """(N, N) bool: the own pair, and all whose ids differ."""
    if ids is None:
        return torch.ones_like(logits_NN, dtype=torch.bool)
    own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    return own | (ids[:, None] != ids[None, :])


def one_direction(logits_NN: Tensor, kept_NN: Tensor, label_smoothing: float) -> Tensor:
    """mean_i of LSE_j S_ij − (1−ε) S_ii − ε mean_j S_ij over the kept columns j."""
    lse = logits_NN.masked_fill(~kept_NN, -torch.inf).logsumexp(dim=1)
    over_kept = (logits_NN * kept_NN).sum(dim=1) / kept_NN.sum(dim=1)
    positive = logits_NN.diagonal()
    return (lse - (1 - label_smoothing) * positive - label_smoothing * over_kept).mean()
