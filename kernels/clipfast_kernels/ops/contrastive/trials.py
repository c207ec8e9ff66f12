"""The calls of `contrastive_loss` that `verify` tries. N pairs, D features."""

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
    scale = torch.tensor(10.0, device=device)
    ids = torch.arange(131, device=device) // 3

    def draw(n: int, d: int, *others: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
        return lambda seed: (*pairs(n, d, dtype, device, seed), *others)

    yield Trial("odd sizes", draw(131, 67, scale, ids), _call_with_options, timed=False)
    for n, d in rows_shapes(device):
        yield Trial(rows_class(n, d), draw(n, d, scale), _call)


def _call(backend: str, image: Tensor, text: Tensor, scale: Tensor) -> dict[str, Tensor]:
    return _loss(backend, image, text, scale, None, 0.0)


def _call_with_options(
    backend: str, image: Tensor, text: Tensor, scale: Tensor, ids: Tensor
) -> dict[str, Tensor]:
    return _loss(backend, image, text, scale, ids, 0.1)


def _loss(
    backend: str,
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    ids: Tensor | None,
    label_smoothing: float,
) -> dict[str, Tensor]:
    from clipfast_kernels.ops.contrastive.api import contrastive_loss

    leaves = {"image": leaf(image), "text": leaf(text), "logit_scale": leaf(scale)}
    loss = contrastive_loss(
        *leaves.values(), ids=ids, label_smoothing=label_smoothing, backend=backend
    )
    return {"loss": loss.detach(), **with_gradients(loss, leaves)}
