"""The contrastive loss as a torch operator: one forward and one backward for all backends.

What needs the whole batch but only O(N·D) work is here: the exchange between ranks, the loss's
assembly from log-likelihoods, label smoothing. The O(N²·D) sweeps are the backends'.

Shapes: B local rows, N = W·B pairs over all ranks, D features.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipfast_kernels.distributed import all_gather
from clipfast_kernels.ops.block import Block, SoftmaxSaved
from clipfast_kernels.ops.panel import (
    compute_dtype,
    paired_dots,
    weighted_sum,
    wide_dtype,
)

_FORWARD = "clipfast_kernels::contrastive_fwd"
_BACKWARD = "clipfast_kernels::contrastive_bwd"

# all_image and all_text are the gathered features, None for one process alone. `metrics` is
# (image_top1, text_top1, positive_logit), or empty unless asked for. The rest is for the backward:
# float64 (N,) vectors of rows' and columns' log-sum-exp, positives, and inverse norms.
torch.library.define(
    _FORWARD,
    "(Tensor image, Tensor text, Tensor? all_image, Tensor? all_text, Tensor logit_scale,"
    " Tensor? ids, bool normalize, float label_smoothing, str backend, str group, int offset,"
    " bool with_metrics)"
    " -> (Tensor loss, Tensor metrics, Tensor image_lse, Tensor text_lse, Tensor positive,"
    " Tensor image_inv_norm, Tensor text_inv_norm)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor d_loss, Tensor image, Tensor text, Tensor? all_image, Tensor? all_text,"
    " Tensor logit_scale, Tensor? ids, bool normalize, float label_smoothing, str backend,"
    " int offset, Tensor image_lse, Tensor text_lse, Tensor positive, Tensor image_inv_norm,"
    " Tensor text_inv_norm)"
    " -> (Tensor d_image, Tensor d_text, Tensor d_logit_scale)",
)


def _module(backend: str) -> ModuleType:
    from clipfast_kernels.ops.contrastive.api import BACKENDS

    return BACKENDS.modules[backend]()


@torch.library.impl(_FORWARD, "CompositeExplicitAutograd")
def _forward(
    image: Tensor,
    text: Tensor,
    all_image: Tensor | None,
    all_text: Tensor | None,
    logit_scale: Tensor,
    ids: Tensor | None,
    normalize: bool,
    label_smoothing: float,
    backend: str,
    group: str,
    offset: int,
    with_metrics: bool,
) -> tuple[Tensor, ...]:
    forward = _module(backend).forward
    with torch.autocast(image.device.type, enabled=False):
        if all_image is None or all_text is None:
            all_image, all_text = image, text
            swept = forward(
                Block(image, text, logit_scale, ids, 0, normalize, True), top1=with_metrics
            )
            image_nll, text_nll, positive = swept.row_nll, swept.col_nll, swept.positive
            image_lse, text_lse = positive + image_nll, positive + text_nll
            image_inv, text_inv = swept.x_inv_norm, swept.y_inv_norm
            hits = [swept.row_hit, swept.col_hit]
        else:
            of_image = forward(
                Block(image, all_text, logit_scale, ids, offset, normalize, False),
                top1=with_metrics,
            )
            of_text = forward(
                Block(text, all_image, logit_scale, ids, offset, normalize, False),
                top1=with_metrics,
            )
            image_inv, text_inv = of_text.y_inv_norm, of_image.y_inv_norm
            # Likelihoods travel, not log-sum-exps: a well-learned pair's is small, and keeps its
            # precision. Every rank has what it takes to compute all positives' logits itself.
            dtype = compute_dtype(image)
            image_nll = all_gather(of_image.row_nll.to(dtype), group).to(image_inv.dtype)
            text_nll = all_gather(of_text.row_nll.to(dtype), group).to(image_inv.dtype)
            positive = _wide(logit_scale) * paired_dots(all_image, all_text) * image_inv * text_inv
            own = slice(offset, offset + len(image))
            image_lse, text_lse = positive + image_nll, positive + text_nll
            image_lse[own] = of_image.positive + of_image.row_nll
            text_lse[own] = of_text.positive + of_text.row_nll
            positive[own] = of_image.positive
            hits = [of_image.row_hit, of_text.row_hit]
        n = len(positive)
        total = (image_nll + text_nll).sum()
        if label_smoothing and n > 1:
            total = total + _smoothing_term(
                all_image, all_text, logit_scale, ids, label_smoothing,
                positive, image_inv, text_inv,
            )  # fmt: skip
        loss = (total / (2 * n)).to(compute_dtype(image))
        metrics = positive.new_empty(0)
        if with_metrics:
            counts = torch.stack([hit.sum() for hit in hits]).to(positive.dtype)
            if group:
                counts = all_gather(counts, group).view(-1, 2).sum(dim=0)
            metrics = torch.cat([counts / n, positive.mean().view(1)])
    return loss, metrics, image_lse, text_lse, positive, image_inv, text_inv


@torch.library.impl(_BACKWARD, "CompositeExplicitAutograd")
def _backward(
    d_loss: Tensor,
    image: Tensor,
    text: Tensor,
    all_image: Tensor | None,
    all_text: Tensor | None,
    logit_scale: Tensor,
    ids: Tensor | None,
    normalize: bool,
    label_smoothing: float,
    backend: str,
    offset: int,
    image_lse: Tensor,
    text_lse: Tensor,
    positive: Tensor,
    image_inv: Tensor,
    text_inv: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    backward = _module(backend).backward
    with torch.autocast(image.device.type, enabled=False):
        n = len(positive)
        weights = smoothing_weights(positive, ids, label_smoothing) if label_smoothing else None
        # Ranks' gradients are averaged afterwards, so each gives W times its share.
        factor = d_loss.to(positive.dtype) * (n // len(image)) / (2 * n)

        def side(x: Tensor, y: Tensor, own: slice, flipped: bool, symmetric: bool) -> Any:
            x_inv, y_inv = (text_inv, image_inv) if flipped else (image_inv, text_inv)
            x_lse, y_lse = (text_lse, image_lse) if flipped else (image_lse, text_lse)
            saved = SoftmaxSaved(
                x_inv[own], y_inv, x_lse[own], y_lse, positive[own],
                None if weights is None else weights[own], weights, label_smoothing,
            )  # fmt: skip
            block = Block(x, y, logit_scale, ids, own.start, normalize, symmetric)
            return backward(block, saved, factor)

        if all_image is None or all_text is None:
            d_image, d_text, d_scale = side(image, text, slice(0, n), False, True)
        else:
            own = slice(offset, offset + len(image))
            d_image, _, d_scale = side(image, all_text, own, False, False)
            d_text, _, _ = side(text, all_image, own, True, False)
        return (
            d_image.to(image.dtype),
            d_text.to(text.dtype),
            d_scale.to(logit_scale.dtype).reshape(logit_scale.shape),
        )


def smoothing_weights(positive: Tensor, ids: Tensor | None, label_smoothing: float) -> Tensor:
    """(N,) w_i = ε/|A_i|, A_i being row i's kept columns."""
    n = len(positive)
    if ids is None:
        return torch.full_like(positive, label_smoothing / n)
    _, group, count = ids.unique(return_inverse=True, return_counts=True)
    return label_smoothing / (n + 1 - count[group]).to(positive.dtype)


def _smoothing_term(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    ids: Tensor | None,
    label_smoothing: float,
    positive: Tensor,
    image_inv: Tensor,
    text_inv: Tensor,
) -> Tensor:
    """2ε Σ_i z_ii − Σ_{kept ij} (w_i + w_j) z_ij, from sums of rows: O(N·D).

    With X, Y the sums of all unit rows and X_g, Y_g those of a group of equal ids, the second sum
    is Σ_i w_i (x̂_i·Y + X·ŷ_i) − 2 Σ_g w_g X_g·Y_g + 2 Σ_i w_i x̂_i·ŷ_i.
    """
    weights = smoothing_weights(positive, ids, label_smoothing)
    scale = _wide(logit_scale)
    smoothed = weighted_sum(image, image_inv * weights).dot(weighted_sum(text, text_inv))
    smoothed += weighted_sum(image, image_inv).dot(weighted_sum(text, text_inv * weights))
    smoothed = smoothed * scale
    if ids is not None:
        order = ids.argsort(stable=True)
        lengths = ids.unique(return_counts=True)[1]
        x_g, y_g = (
            torch.segment_reduce(
                (rows.to(inv.dtype) * inv[:, None])[order], "sum", lengths=lengths, axis=0
            )
            for rows, inv in ((image, image_inv), (text, text_inv))
        )
        first = weights[order][lengths.cumsum(0) - lengths]
        smoothed -= 2 * scale * (first[:, None] * x_g * y_g).sum()
        smoothed += 2 * weights.dot(positive)
    return 2 * label_smoothing * positive.sum() - smoothed


def _wide(logit_scale: Tensor) -> Tensor:
    return logit_scale.to(wide_dtype(logit_scale.device)).reshape(())


@torch.library.register_fake(_FORWARD)
def _(
    image: Tensor,
    text: Tensor,
    all_image: Tensor | None,
    all_text: Tensor | None,
    logit_scale: Tensor,
    ids: Tensor | None,
    normalize: bool,
    label_smoothing: float,
    backend: str,
    group: str,
    offset: int,
    with_metrics: bool,
) -> tuple[Tensor, ...]:
    wide = wide_dtype(image.device)
    n = len(image if all_image is None else all_image)
    return (
        image.new_empty((), dtype=compute_dtype(image)),
        image.new_empty(3 if with_metrics else 0, dtype=wide),
        *(image.new_empty(n, dtype=wide) for _ in range(5)),
    )


@torch.library.register_fake(_BACKWARD)
def _(
    d_loss: Tensor,
    image: Tensor,
    text: Tensor,
    all_image: Tensor | None,
    all_text: Tensor | None,
    logit_scale: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(image, memory_format=torch.contiguous_format),
        torch.empty_like(text, memory_format=torch.contiguous_format),
        torch.empty_like(logit_scale),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.normalize, ctx.label_smoothing, ctx.backend, _, ctx.offset, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[2:])


def _gradient(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    image, text, all_image, all_text, logit_scale, ids, *saved = ctx.saved_tensors
    d_image, d_text, d_logit_scale = torch.ops.clipfast_kernels.contrastive_bwd(
        d_loss, image, text, all_image, all_text, logit_scale, ids,
        ctx.normalize, ctx.label_smoothing, ctx.backend, ctx.offset, *saved,
    )  # fmt: skip
    return (d_image, d_text, None, None, d_logit_scale, *[None] * 7)


def _no_second_gradient(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "contrastive_loss: the gradient of its gradient is not implemented; "
        "backend='reference' has it"
    )


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_setup_context)
torch.library.register_autograd(_BACKWARD, _no_second_gradient)
