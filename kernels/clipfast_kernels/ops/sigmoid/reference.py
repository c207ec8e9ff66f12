"""The sigmoid loss as the formula stands: dense, differentiable to any order, any device.

Every other backend is measured against this one in float64. N pairs, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast_kernels.ops.contrastive.reference import kept_pairs, unit_rows


def unusable(*tensors: Tensor) -> list[str]:
    return []


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    normalize: bool,
    ids: Tensor | None,
) -> Tensor:
    dtype = torch.float64 if image_features.dtype == torch.float64 else torch.float32
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = image_features.to(dtype), text_features.to(dtype)
        if normalize:
            image, text = unit_rows(image), unit_rows(text)
        logits_NN = logit_scale.to(dtype).reshape(()) * (image @ text.T)
        logits_NN = logits_NN + logit_bias.to(dtype).reshape(())
        sign_NN = 1 - 2 * torch.eye(len(image), dtype=dtype, device=image.device)
        terms_NN = -F.logsigmoid(-sign_NN * logits_NN)
        return (terms_NN * kept_pairs(logits_NN, ids)).sum() / len(image)
