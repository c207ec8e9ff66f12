"""x·σ(1.702 x) as the formula stands, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor


def unusable(*tensors: Tensor) -> list[str]:
    return []


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
