"""What the compiled CPU backends take: the checks and the dtypes that they share."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels import extension

_COST = "until then plain torch serves, in 1.3 to 2.5 times the time"


def unusable(*tensors: Tensor) -> list[str]:
    """Why this backend cannot serve these tensors or, with none, this machine. Empty: it can."""
    reasons = []
    if extension.MISSING is not None:
        reasons.append(f"{extension.MISSING}; {_COST}")
    for device in sorted({str(t.device) for t in tensors if t.device.type != "cpu"}):
        reasons.append(f"a tensor is on {device}, and this backend is for the CPU")
    served = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
    for dtype in sorted({str(t.dtype) for t in tensors if t.dtype not in served}):
        reasons.append(
            f"a tensor is {dtype}, and this backend takes float16, bfloat16, float32 and float64"
        )
    return reasons


def computed(features: Tensor) -> Tensor:
    """Features as the kernels take them: half precision is computed in float32."""
    wide = features if features.dtype == torch.float64 else features.float()
    return wide.contiguous()
