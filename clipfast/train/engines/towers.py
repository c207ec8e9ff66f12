"""The model as engines wrap it: one forward that gives both towers' features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.data.batch import Batch
from clipfast.encoder import Encoder
from clipfast.train.engines.engine import Encoded

# The multiplier goes no further than 100: Radford et al. 2021, §2.5.
MAX_LOG_SCALE = math.log(100)


class Towers(nn.Module):
    """Args:
    model: ours or open_clip's; its parameters are this module's, under the prefix ``model.``.
    encoder: of the same model.
    """

    def __init__(self, model: Any, encoder: Encoder) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder

    def forward(self, batch: Batch) -> Encoded:
        bias = getattr(self.model, "logit_bias", None)
        image, text = self.encoder.image(batch), self.encoder.text(batch)
        dtype = _common_dtype(image, text)
        return Encoded(
            image.to(dtype),
            text.to(dtype),
            self.model.logit_scale.float().exp().reshape(()),
            None if bias is None else bias.float().reshape(()),
        )


def _common_dtype(image: Tensor, text: Tensor) -> torch.dtype:
    """They differ where one tower's features come from a cache. float16 has no room for a loss's
    gradient, which is about 1/N of a feature."""
    dtype = torch.promote_types(image.dtype, text.dtype)
    return torch.float32 if dtype == torch.float16 else dtype
