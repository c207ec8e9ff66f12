"""The calls of `batch_norm` that `verify` tries."""

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
        channels = shape[1:2]
        return lambda seed: normal(seed, dtype, device, shape, shape, channels, channels)

    yield Trial("odd sizes", draw(3, 131, 5, 7), _call, timed=False)
    yield Trial(_KIND, draw(8 if device.type == "cpu" else 64, 256, 56, 56), _call)


def _call(backend: str, x: Tensor, d_y: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    from clipfast_kernels.ops.batch_norm.api import batch_norm

    x, d_y = (t.contiguous(memory_format=torch.channels_last) for t in (x, d_y))
    leaves = {"x": leaf(x), "weight": leaf(weight), "bias": leaf(bias)}
    y = batch_norm(*leaves.values(), training=True, backend=backend)
    return {"y": y.detach(), **with_gradients(y, leaves, d_y)}
