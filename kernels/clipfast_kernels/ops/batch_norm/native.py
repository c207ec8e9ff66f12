"""Batch normalisation by torch's own kernels, with torch's own autograd, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unusable(*tensors: Tensor) -> list[str]:
    return []


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor] | None,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and biased variance by which it was normalised; the batch's if None."""
    if x.device.type == "cpu":
        # Channels-last, torch's kernel adds up in float32 one after the other: 5 times what the
        # tolerance rule allows at 8 x 256 x 56 x 56.
        x = x.contiguous()
    if statistics is not None:
        mean, var = statistics
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    else:
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        var = inverse.detach() ** -2 - eps
    return (F.relu(y, inplace=True) if relu else y), mean.detach(), var
