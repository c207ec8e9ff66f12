"""The contrastive loss's compiled CPU backend: operators, their shapes, their gradient.

Shapes: N pairs, D features. The kernels are in ``csrc/cpu/contrastive.cpp``; the schemas here exist
with or without them.
"""

from typing import Any

import torch
from torch import Tensor

from clipfast_kernels import extension

_NAMESPACE = "clipfast_kernels"
_COST = "until then the loss is dense: several N×N arrays, two to three times the time"

# After the loss, float64 (N,) vectors that the backward needs: the rows' and the columns'
# log-sum-exp, the positives' logits, and 1/‖x‖ (ones without normalisation).
torch.library.define(
    f"{_NAMESPACE}::contrastive_fwd_cpu",
    "(Tensor image, Tensor text, Tensor logit_scale, Tensor? ids, bool normalize,"
    " float label_smoothing)"
    " -> (Tensor loss, Tensor image_lse, Tensor text_lse, Tensor positive,"
    " Tensor image_inv_norm, Tensor text_inv_norm)",
)
torch.library.define(
    f"{_NAMESPACE}::contrastive_bwd_cpu",
    "(Tensor d_loss, Tensor image, Tensor text, Tensor logit_scale, Tensor? ids, bool normalize,"
    " float label_smoothing, Tensor image_lse, Tensor text_lse, Tensor positive,"
    " Tensor image_inv_norm, Tensor text_inv_norm)"
    " -> (Tensor d_image, Tensor d_text, Tensor d_logit_scale)",
)


@torch.library.register_fake(f"{_NAMESPACE}::contrastive_fwd_cpu")
def _(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    ids: Tensor | None,
    normalize: bool,
    label_smoothing: float,
) -> tuple[Tensor, ...]:
    loss = image.new_empty(())
    return (loss, *(image.new_empty(image.shape[0], dtype=torch.float64) for _ in range(5)))


@torch.library.register_fake(f"{_NAMESPACE}::contrastive_bwd_cpu")
def _(
    d_loss: Tensor,
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(image), torch.empty_like(text), torch.empty_like(logit_scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    image, text, logit_scale, ids, ctx.normalize, ctx.label_smoothing = inputs
    saved = output[1:]
    ctx.mark_non_differentiable(*saved)
    ctx.save_for_backward(image, text, logit_scale, ids, *saved)


def _backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    image, text, logit_scale, ids, *saved = ctx.saved_tensors
    gradients = torch.ops.clipfast_kernels.contrastive_bwd_cpu(
        d_loss, image, text, logit_scale, ids, ctx.normalize, ctx.label_smoothing, *saved
    )
    return (*gradients, None, None, None)


def _no_second_gradient(ctx: Any, *_: Any) -> None:
    raise NotImplementedError("contrastive_loss: the gradient of its gradient is not implemented")


torch.library.register_autograd(
    f"{_NAMESPACE}::contrastive_fwd_cpu", _backward, setup_context=_setup_context
)
torch.library.register_autograd(f"{_NAMESPACE}::contrastive_bwd_cpu", _no_second_gradient)


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    normalize: bool,
    ids: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """``clipfast_kernels.contrastive_loss`` on arguments that it has already checked."""
    # Half precision is computed in float32; autograd brings the gradient back in its own dtype.
    if image_features.dtype != torch.float64:
        image_features, text_features = image_features.float(), text_features.float()
    return torch.ops.clipfast_kernels.contrastive_fwd_cpu(
        image_features.contiguous(),
        text_features.contiguous(),
        logit_scale,
        None if ids is None else ids.contiguous(),
        normalize,
        label_smoothing,
    )[0]


def unusable(*tensors: Tensor) -> list[str]:
    """Why this backend cannot serve these tensors or, with none, this machine. Empty: it can."""
    reasons = []
    if extension.MISSING is not None:
        reasons.append(f"{extension.MISSING}; {_COST}")
    for device in sorted({str(t.device) for t in tensors if t.device.type != "cpu"}):
        reasons.append(f"a tensor is on {device}, and this backend is for the CPU")
    served = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
    for dtype in sorted({str(t.dtype) for t in tensors if t.dtype not in served}):
        reasons.append(
            f"a tensor is {dtype}, and this backend takes float16, bfloat16, float32 and float64"
        )
    return reasons
