"""Whether a contender's answer is right: an error, and what it may be.

The rule for kernels is that of `clipfast_kernels.verify`, from a float64 reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from clipfast_kernels.measuring import compared
from torch import Tensor

# What float32 and 16-bit answers of one question may differ by, of their largest value, where only
# contenders can be compared with each other.
_AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-12}
_AGREEMENT_16_BIT = 2e-2


class Answer(NamedTuple):
    """Attributes:
    error, allowed: in the same unit; NaN is never right.
    of: what they are of.
    """

    error: float
    allowed: float
    of: str = ""

    @property
    def right(self) -> bool:
        return bool(self.error <= self.allowed)  # NumPy's own truth is no JSON

    @property
    def badness(self) -> float:
        """How many times what is allowed."""
        if self.right:
            return self.error / self.allowed if self.allowed else 0.0
        return (
            self.error / self.allowed if self.allowed and not math.isnan(self.error) else math.inf
        )

    def as_json(self) -> dict[str, object]:
        """JSON has no infinity: such an error is null."""
        error = float(self.error) if math.isfinite(self.error) else None
        return {"error": error, "allowed": float(self.allowed), "right": self.right, "of": self.of}

    def __str__(self) -> str:
        return f"error {self.error:.1e}, allowed {self.allowed:.1e}" + (self.of and f", {self.of}")


def worst(answers: Iterable[Answer]) -> Answer:
    return max(answers, key=lambda answer: answer.badness)


def within_tolerance(
    actual: Mapping[str, Tensor], low: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> Answer:
    """max|actual − exact| ≤ 2·(max|low − exact| + eps·max|exact|), of the tensor that is furthest
    out of it.

    Args:
        actual: a contender's outputs and gradients; those that it does not give are not compared.
        low: the reference's in the contender's dtype, whose eps counts.
        exact: the reference's in float64.
    """
    floating = [x.dtype for x in low.values() if x.is_floating_point()]
    eps = max(torch.finfo(dtype).eps for dtype in floating)
    given = {n: x.to(low[n].dtype) for n, x in actual.items() if n in low}
    found = compared(given, *({n: x[n] for n in given} for x in (low, exact)), eps)
    assert found.error is not None
    assert found.allowed is not None
    return Answer(found.error, found.allowed, found.note)


def agreement(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Answer:
    """max|a − b| beside max|b|, where the exact answer would take too long."""
    return worst(
        Answer(
            (x.double() - expected[name].double()).abs().max().item(),
            _AGREEMENT.get(x.dtype, _AGREEMENT_16_BIT) * expected[name].abs().max().item(),
            name,
        )
        for name, x in actual.items()
        if x.is_floating_point()
    )


def by_norm(actual: Mapping[str, Tensor], exact: Mapping[str, Tensor], share: float) -> Answer:
    """‖a − b‖ beside ‖b‖, for functions with a step in them, which rounding may take either way."""
    return worst(
        Answer(
            (actual[name].double() - b).norm().item(), share * b.norm().item(), f"norm of {name}"
        )
        for name, b in exact.items()
        if name in actual
    )


def equal(
    actual: Sequence[object] | Tensor, expected: Sequence[object] | Tensor, of: str
) -> Answer:
    """How many differ, of which none may."""
    if len(actual) != len(expected):
        return Answer(math.inf, 0.0, f"{of}: {len(actual)} of {len(expected)}")
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        if actual.shape != expected.shape:
            return Answer(math.inf, 0.0, f"{of}: another shape")
        return Answer(float((actual != expected).sum()), 0.0, of)
    return Answer(float(sum(a != b for a, b in zip(actual, expected, strict=True))), 0.0, of)
