"""The tolerance rule that every kernel is held to.

A kernel may be no further from the float64 reference than twice what the reference itself is when
it runs in the kernel's dtype, plus that dtype's spacing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_within_tolerance(
    actual: Sequence[Tensor],
    low: Sequence[Tensor],
    exact: Sequence[Tensor],
    names: Sequence[str],
    sizes: dict[str, float] | None = None,
) -> None:
    """max|actual − exact| ≤ 2·(max|low − exact| + eps·max|exact|), for every tensor.

    In float64, where the reference is its own exact value, 1e-12·max|exact|.

    Args:
        actual: the kernel's output and gradients.
        low: the reference's in the kernel's dtype.
        exact: the reference's in float64.
        names: of these tensors.
        sizes: name to what eps multiplies instead of max|exact|, for a tensor of one element that
            is a sum of terms of both signs: its rounding goes with the terms, and one element has
            no neighbours over which max|low − exact| would show that.
    """
    for a, b, e, name in zip(actual, low, exact, names, strict=True):
        assert a.shape == e.shape, f"{name}: shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        assert a.dtype == b.dtype, f"{name}: {a.dtype}, expected {b.dtype}"
        error = (a.double() - e).abs().max().item()
        size = (sizes or {}).get(name, e.abs().max().item())
        if b.dtype == torch.float64:
            allowed = 1e-12 * size
        else:
            low_error = (b.double() - e).abs().max().item()
            allowed = 2 * (low_error + torch.finfo(b.dtype).eps * size)
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
