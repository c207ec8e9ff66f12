"""The sigmoid loss as a torch operator: its forward makes the gradients, its backward scales them.

Shapes: B local rows, N = W·B pairs over all ranks, D features.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipfast_kernels.distributed import all_gather
from clipfast_kernels.ops.block import Block
from clipfast_kernels.ops.panel import compute_dtype, wide_dtype

_FORWARD = "clipfast_kernels::sigmoid_fwd"

# After the loss, the gradients for an upstream gradient of 1: those of the features in float32
# (float64), empty unless `gradient`.
torch.library.define(
    _FORWARD,
    "(Tensor image, Tensor text, Tensor? all_image, Tensor? all_text, Tensor logit_scale,"
    " Tensor logit_bias, Tensor? ids, bool normalize, str backend, str group, int offset,"
    " bool gradient)"
    " -> (Tensor loss, Tensor d_image, Tensor d_text, Tensor d_logit_scale, Tensor d_logit_bias)",
)


def _module(backend: str) -> ModuleType:
    from clipfast_kernels.ops.sigmoid.api import BACKENDS

    return BACKENDS.modules[backend]()


@torch.library.impl(_FORWARD, "CompositeExplicitAutograd")
def _forward(
    image: Tensor,
    text: Tensor,
    all_image: Tensor | None,
    all_text: Tensor | None,
    logit_scale: Tensor,
    logit_bias: Tensor,
    ids: Tensor | None,
    normalize: bool,
    backend: str,
    group: str,
    offset: int,
    gradient: bool,
) -> tuple[Tensor, ...]:
    forward = _module(backend).forward
    with torch.autocast(image.device.type, enabled=False):
        if all_image is None or all_text is None:
            swept = forward(
                Block(image, text, logit_scale, ids, 0, normalize, True),
                logit_bias,
                gradient=gradient,
            )
            total, d_image, d_text = swept.loss, swept.d_x, swept.d_y
        else:
            swept = forward(
                Block(image, all_text, logit_scale, ids, offset, normalize, False),
                logit_bias,
                gradient=gradient,
            )
            total, d_image, d_text = all_gather(swept.loss.view(1), group).sum(), swept.d_x, None
            if gradient:
                d_text = forward(
                    Block(text, all_image, logit_scale, ids, offset, normalize, False),
                    logit_bias,
                    gradient=True,
                ).d_x
        if d_text is None:
            d_text = d_image.new_empty(0)
        # Ranks' gradients are averaged afterwards: W times a share of 1/N is 1/B.
        n = len(image if all_image is None else all_image)
        if gradient:
            d_image /= len(image)
            d_text /= len(image)
        return (
            (total / n).to(compute_dtype(image)),
            d_image,
            d_text,
            swept.d_scale / len(image),
            swept.d_bias / len(image),
        )


@torch.library.register_fake(_FORWARD)
def _(
    image: Tensor,
    text: Tensor,
    all_image: Tensor | None,
    all_text: Tensor | None,
    logit_scale: Tensor,
    logit_bias: Tensor,
    ids: Tensor | None,
    normalize: bool,
    backend: str,
    group: str,
    offset: int,
    gradient: bool,
) -> tuple[Tensor, ...]:
    dtype, wide = compute_dtype(image), wide_dtype(image.device)
    shape = image.shape if gradient else (0,)
    return (
        image.new_empty((), dtype=dtype),
        image.new_empty(shape, dtype=dtype),
        image.new_empty(shape, dtype=dtype),
        image.new_empty((), dtype=wide),
        image.new_empty((), dtype=wide),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image, text, _, _, logit_scale, logit_bias = inputs[:6]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.like = [(x.dtype, x.shape) for x in (image, text, logit_scale, logit_bias)]


def _gradient(ctx: Any, d_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if d_loss is None:
        return (None,) * 12
    d_image, d_text, d_scale, d_bias = (
        (saved * d_loss.to(saved.dtype)).to(dtype).reshape(shape)
        for saved, (dtype, shape) in zip(ctx.saved_tensors, ctx.like, strict=True)
    )
    return (d_image, d_text, None, None, d_scale, d_bias, *[None] * 6)


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_setup_context)
