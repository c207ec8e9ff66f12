"""Features for the tests of the losses, and which backends this process can test."""

from __future__ import annotations

import pytest
import torch
from clipfast_kernels import backends
from torch import Tensor


def features(n, d, dtype=torch.float32, seed=0, size=1.0):
    """Two (n, d) matrices of normal numbers, equal in all dtypes up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return [
        size * torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(2)
    ]


def usable(op):
    """The op's backends that work here; Triton's only with TRITON_INTERPRET=1 or on a GPU."""
    return [name for name, why in backends(op).reasons.items() if not why]


def skip_unless_served(op, backend, *tensors):
    """Skips what the backend says it does not do, with its reason."""
    if reasons := backends(op, *tensors).reasons[backend]:
        pytest.skip("; ".join(reasons))


def leaves(dtype, *tensors: Tensor):
    return [x.detach().to(dtype).requires_grad_() for x in tensors]
