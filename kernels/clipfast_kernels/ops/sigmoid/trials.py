"""The calls of `sigmoid_loss` that `verify` tries. N pairs, D features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from clipfast_kernels.ops.trial import (
    Trial,
    leaf,
    pairs,
    rows_class,
    rows_shapes,
    with_gradients,
)


def shape_class(image: Tensor, *others: Tensor) -> str:
    """By this rank's pairs and their width."""
    return rows_class(*image.shape)


def trials(device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    # SigLIP's values at its start.
    scale, bias = torch.tensor(10.0, device=device), torch.tensor(-10.0, device=device)
    ids = torch.arange(131, device=device) // 3

    def draw(n: int, d: int, ids: Tensor | None) -> Callable[[int], tuple[Tensor | None, ...]]:
        return lambda seed: (*pairs(n, d, dtype, device, seed), scale, bias, ids)

    yield Trial("odd sizes", draw(131, 67, ids), _call, timed=False)
    for n, d in rows_shapes(device):
        yield Trial(rows_class(n, d), draw(n, d, None), _call)


def _call(
    backend: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, ids: Tensor | None
) -> dict[str, Tensor]:
    from clipfast_kernels.ops.sigmoid.api import sigmoid_loss

    leaves = {
        "image": leaf(image),
        "text": leaf(text),
        "logit_scale": leaf(scale),
        "logit_bias": leaf(bias),
    }
    loss = sigmoid_loss(*leaves.values(), ids=ids, backend=backend)
    return {"loss": loss.detach(), **with_gradients(loss, leaves)}
