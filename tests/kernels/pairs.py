"""Features for the tests of the losses, what rounding does to them, and which backends run here.

N pairs, D features.
"""

from __future__ import annotations

import pytest
import torch
from clipfast_kernels import backends
from clipfast_kernels.ops.contrastive import reference
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


def several_tiles(backend):
    """Pairs that fill several of a backend's tiles; the interpreter takes seconds for as many as
    the others compute in milliseconds."""
    return 200 if backend == "triton" else 700


def leaves(dtype, *tensors: Tensor):
    return [x.detach().to(dtype).requires_grad_() for x in tensors]


def logits_and_sizes(image, text, scale, bias, normalize):
    """Float64 logits, the cosines' terms Σ|x̂_d ŷ_d|, and what the logits move with (N, N)."""
    x, y = (reference.unit_rows(f.double()) if normalize else f.double() for f in (image, text))
    terms_NN = x.abs() @ y.T.abs()
    return scale * (x @ y.T) + bias, terms_NN, scale * terms_NN + abs(bias)


def gradient_conditions(image, text, scale, moves_NN, normalize):
    """Condition numbers (tolerance.py) of d_image and d_text, from those of ∂loss/∂logits."""
    found = {}
    for name, own, other, moves in (
        ("d_image", image, text, moves_NN),
        ("d_text", text, image, moves_NN.T),
    ):
        own, other = own.double(), other.double()
        if normalize:
            other = reference.unit_rows(other)
        d = scale * (moves @ other.abs())
        if normalize:
            # (d − (x̂·d) x̂) / ‖x‖: of few features nearly nothing is left.
            unit, norm = reference.unit_rows(own).abs(), own.norm(dim=1, keepdim=True)
            d = (d + (unit * d).sum(dim=1, keepdim=True) * unit) / norm.where(norm > 0, torch.inf)
        found[name] = d.max().item()
    return found
