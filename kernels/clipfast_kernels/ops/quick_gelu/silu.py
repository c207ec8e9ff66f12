"""x·σ(1.702 x) by torch's fused z·σ(z), with two more passes for the factor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unusable(*tensors: Tensor) -> list[str]:
    return []


def quick_gelu(x: Tensor) -> Tensor:
    return F.silu(1.702 * x) / 1.702
