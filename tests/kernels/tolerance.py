"""The tolerance rule that every kernel is held to.

A kernel may be no further from the float64 reference than twice what the reference itself is when
it runs in the kernel's dtype, plus that dtype's spacing, plus what no float32 can know: how far the
exact result moves with the rounding of what it is computed from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def assert_within_tolerance(
    actual: Sequence[Tensor],
    low: Sequence[Tensor],
    exact: Sequence[Tensor],
    names: Sequence[str],
    conditions: Mapping[str, float] | None = None,
) -> None:
    """max|actual − exact| ≤ 2·(max|low − exact| + eps·max|exact|) + eps32·condition, for each.

    In float64, where the reference is its own exact value, 1e-12·max|exact| + 4·eps·condition.

    The reference's own error is one draw, and where few numbers are computed a lucky one: a sum
    that cancels to nothing in the very order the reference has, or an e^{s − lse} of which both
    came from the same rounding. A kernel that sums in another order, or a reference whose products
    another processor sums in another order, cannot have that luck. The condition bounds what luck
    hides, from the inputs alone.

    Args:
        actual: the kernel's output and gradients.
        low: the reference's in the kernel's dtype.
        exact: the reference's in float64.
        names: of these tensors.
        conditions: name to an absolute condition number: how far, to first order, the exact tensor
            moves for a relative error of 1 in every exponent and every term that it is a sum of.
            Kernels compute those in float32 for 16-bit inputs too.
    """
    for a, b, e, name in zip(actual, low, exact, names, strict=True):
        assert a.shape == e.shape, f"{name}: shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        assert a.dtype == b.dtype, f"{name}: {a.dtype}, expected {b.dtype}"
        error = (a.double() - e).abs().max().item()
        size, condition = e.abs().max().item(), (conditions or {}).get(name, 0.0)
        if b.dtype == torch.float64:
            allowed = 1e-12 * size + 4 * torch.finfo(torch.float64).eps * condition
        else:
            low_error = (b.double() - e).abs().max().item()
            allowed = 2 * (low_error + torch.finfo(b.dtype).eps * size)
            allowed += torch.finfo(torch.float32).eps * condition
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
