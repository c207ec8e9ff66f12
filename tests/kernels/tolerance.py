"""The tolerance rule that every kernel is held to.

A kernel may be no further from the float64 reference than twice what the reference itself is when
it runs in the kernel's dtype, plus that dtype's spacing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_within_tolerance(
    actual: Sequence[Tensor], low: Sequence[Tensor], exact: Sequence[Tensor], names: Sequence[str]
) -> None:
    """max|actual − exact| ≤ 2·(max|low − exact| + eps·max|exact|), for every tensor.

    Args:
        actual: the kernel's output and gradients.
        low: the reference's in the kernel's dtype.
        exact: the reference's in float64.
        names: of these tensors.
    """
    for a, b, e, name in zip(actual, low, exact, names, strict=True):
        assert a.shape == e.shape, f"{name}: shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        assert a.dtype == b.dtype, f"{name}: {a.dtype}, expected {b.dtype}"
        error = (a.double() - e).abs().max().item()
        allowed = 2 * (
            (b.double() - e).abs().max().item() + torch.finfo(b.dtype).eps * e.abs().max().item()
        )
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
