"""One look at all gradients: their norm, and whether every one is a number."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def finite_norm(gradients: Iterable[Tensor]) -> float | None:
    """√Σ g² over all of them, or None where one is infinite or not a number.

    Equivalent: ``torch.nn.utils.get_total_norm(gradients)`` with ``all(g.isfinite().all())``, in
    one pass over them and one wait for the device: a norm that is finite has only finite parts.

    Args:
        gradients: of any dtype and shapes, on one device; none of them is a norm of 0.

    Returns:
        The norm, computed in float32 for half precision. Squares may overflow though gradients are
        finite: then it is computed again, from gradients scaled down.
    """
    gradients = list(gradients)
    if not gradients:
        return 0.0
    norm = _norm(gradients)
    if norm.isfinite():
        return float(norm)
    largest = torch.stack([x.float() for x in torch._foreach_norm(gradients, torch.inf)]).max()
    if not largest.isfinite():
        return None
    return float(largest) * float(_norm([g / largest for g in gradients]))


def _norm(gradients: list[Tensor]) -> Tensor:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}  # one kernel serves all of a dtype
    for g in gradients:
        by_dtype.setdefault(g.dtype, []).append(g)
    parts = [
        part
        for alike in by_dtype.values()
        for part in torch._foreach_norm(alike, 2, dtype=torch.float32)
    ]
    return torch.linalg.vector_norm(torch.stack(parts))
