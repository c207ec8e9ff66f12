"""`contrastive_loss`: CLIP's softmax loss over all pairs of a batch. B = N pairs, D features."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from clipfast_kernels.dispatch import Op


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.contrastive import cpu

    return cpu


def _reference() -> ModuleType:
    from clipfast_kernels.ops.contrastive import reference

    return reference


BACKENDS = Op(
    name="contrastive_loss",
    modules={"cpu": _cpu, "reference": _reference},
    planned={
        "triton": "clipfast 0.1 has no Triton kernel for this op yet",
        "cuda": "clipfast has no CUDA kernel for this op: its products are the vendor's",
        "torch": "clipfast 0.1 has no panelled PyTorch version of this op yet",
    },
)


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    group: object | None = None,
    backend: str = "auto",
) -> Tensor:
    """mean_i (LSE_j S_ij + LSE_j S_ji − 2 S_ii) / 2, with S = logit_scale · Î T̂ᵀ.

    Equivalent PyTorch::

        i, t = F.normalize(image_features, dim=1), F.normalize(text_features, dim=1)
        logits, labels = logit_scale * i @ t.T, torch.arange(len(i))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    Args:
        image_features: (N, D) float32, float64, float16 or bfloat16; row i is the pair of row i
            of `text_features`.
        text_features: (N, D), of the same dtype and on the same device.
        logit_scale: the multiplier itself (already exponentiated): a number, or a tensor of one
            element on the features' device, which receives its gradient.
        normalize: divide each row by its L2 norm first. A zero row then stays zero and gets a
            zero gradient. False takes the rows as they are.
        ids: (N,) int64 on the features' device, or None. Pairs of equal ids are not negatives of
            each other: they leave the denominator in both directions.
        label_smoothing: ε in [0, 1): each direction's target is 1 − ε on the positive plus ε
            spread evenly over all columns in the denominator, the positive among them.
        group: a torch.distributed process group; None is this process alone, the only choice in
            this release.
        backend: "auto", or a backend's name; `backends("contrastive_loss")` lists them.

    Returns:
        The 0-dim loss, float32 (float64 for float64 features). NaN in a feature gives NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range.
        RuntimeError: the backend asked for cannot serve this call.

    Memory: "cpu" O(N) and one panel of similarities beyond inputs and gradients, 4 products of
    N×N×D for forward and backward; "reference" several N×N arrays.

    Source: Radford et al. 2021, arXiv 2103.00020, figure 3; the chunked form follows
    arXiv 2410.17243 with one recomputation instead of two.
    """
    logit_scale = _check(image_features, text_features, logit_scale, ids, label_smoothing)
    if group is not None:
        raise ValueError("group: expected None (one process) in this release; got a process group")
    chosen = BACKENDS.module(backend, image_features, text_features, logit_scale, ids)
    return chosen.contrastive_loss(
        image_features,
        text_features,
        logit_scale,
        normalize=normalize,
        ids=ids,
        label_smoothing=label_smoothing,
    )


_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    ids: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Checks the public arguments and returns logit_scale as a tensor."""
    for name, x in (("image_features", image), ("text_features", text)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor (N, D); got {type(x).__name__}")
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name}: expected shape (N, D), N and D ≥ 1; got {tuple(x.shape)}")
        if x.dtype not in _FLOATS:
            raise TypeError(f"{name}: expected a floating-point dtype; got {x.dtype}")
    if text.shape != image.shape:
        raise ValueError(
            f"text_features: expected image_features' shape {tuple(image.shape)}; "
            f"got {tuple(text.shape)}"
        )
    if text.dtype != image.dtype:
        raise TypeError(
            f"text_features: expected image_features' dtype {image.dtype}; got {text.dtype}"
        )
    if not isinstance(logit_scale, Tensor):
        if not isinstance(logit_scale, (int, float)):
            raise TypeError(
                f"logit_scale: expected a number or a tensor; got {type(logit_scale).__name__}"
            )
        wide = torch.float64 if image.dtype == torch.float64 else torch.float32
        logit_scale = torch.tensor(float(logit_scale), dtype=wide, device=image.device)
    if logit_scale.numel() != 1 or not logit_scale.is_floating_point():
        raise ValueError(
            "logit_scale: expected one floating-point element; "
            f"got shape {tuple(logit_scale.shape)}, {logit_scale.dtype}"
        )
    if ids is not None and not isinstance(ids, Tensor):
        raise TypeError(f"ids: expected a tensor (N,) or None; got {type(ids).__name__}")
    if ids is not None and (ids.dtype != torch.int64 or ids.shape != image.shape[:1]):
        raise ValueError(
            f"ids: expected int64 of shape ({len(image)},); got {ids.dtype}, {tuple(ids.shape)}"
        )
    for name, other in (("text_features", text), ("logit_scale", logit_scale), ("ids", ids)):
        if other is not None and other.device != image.device:
            raise ValueError(
                f"{name}: expected image_features' device {image.device}; got {other.device}"
            )
    if not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"label_smoothing: expected a number; got {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected 0 ≤ ε < 1; got {label_smoothing}")
    return logit_scale
