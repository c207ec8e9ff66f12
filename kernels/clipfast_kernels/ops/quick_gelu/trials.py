"""The calls of `quick_gelu` that `verify` tries."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from clipfast_kernels.ops.trial import Trial, leaf, normal, with_gradients

# It is the memory's rate that differs, and one size shows that.
_KIND = "any"


def shape_class(x: Tensor, *others: Tensor) -> str:
    return _KIND


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    def draw(*shape: int) -> Callable[[int], tuple[Tensor | None, ...]]:
        return lambda seed: normal(seed, dtype, device, shape, shape)

    yield Trial("odd sizes", draw(7, 131), _call, timed=False)
    yield Trial(_KIND, draw(1600 if device.type == "cpu" else 25600, 3072), _call)


def _call(backend: str, x: Tensor, d_y: Tensor) -> dict[str, Tensor]:
    from clipfast_kernels.ops.quick_gelu.api import quick_gelu

    leaves = {"x": leaf(x)}
    y = quick_gelu(leaves["x"], backend=backend)
    return {"y": y.detach(), **with_gradients(y, leaves, d_y)}
