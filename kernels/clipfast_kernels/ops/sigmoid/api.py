"""`sigmoid_loss`: SigLIP's loss over all pairs of a batch.

Shapes: B local pairs on each of W ranks, N = W·B pairs, D features.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast_kernels.dispatch import Op
from clipfast_kernels.distributed import GatheredFeatures, alone_is_none, gathered
from clipfast_kernels.ops.arguments import check_integers, check_pairs, check_scalar
from clipfast_kernels.ops.rows import with_gradient_of_own
from clipfast_kernels.ops.sigmoid import operator as _operator  # noqa: F401  registers the operator


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.sigmoid import cpu

    return cpu


def _torch() -> ModuleType:
    from clipfast_kernels.ops.sigmoid import panels

    return panels


def _triton() -> ModuleType:
    from clipfast_kernels.ops.sigmoid import triton

    return triton


def _reference() -> ModuleType:
    from clipfast_kernels.ops.sigmoid import reference

    return reference


def _trials() -> ModuleType:
    from clipfast_kernels.ops.sigmoid import trials

    return trials


BACKENDS = Op(
    name="sigmoid_loss",
    modules={"cpu": _cpu, "torch": _torch, "triton": _triton, "reference": _reference},
    planned={"cuda": "clipfast has no CUDA kernel for this op: its products are the vendor's"},
    trials=_trials,
)


def sigmoid_loss(
    image_features: Tensor | GatheredFeatures,
    text_features: Tensor | GatheredFeatures,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """(1/N) Σ_ij softplus(−y_ij S_ij), S = logit_scale · Î T̂ᵀ + logit_bias, y = 1 on pairs else −1.

    Equivalent PyTorch::

        i, t = F.normalize(image_features, dim=1), F.normalize(text_features, dim=1)
        logits, y = logit_scale * i @ t.T + logit_bias, 2 * torch.eye(len(i)) - 1
        loss = -F.logsigmoid(y * logits).sum() / len(i)

    Over a process group the pairs are those of all ranks, the value is the same on every rank, and
    each rank's gradient is W times its share, so that the average over ranks is exactly the
    gradient of the loss; open_clip's SigLipLoss gives the same average.

    Args:
        image_features: (B, D) float32, float64, float16 or bfloat16, or their `start_gather`
            handle; row i is the pair of row i of `text_features`.
        text_features: (B, D), of the same dtype and on the same device.
        logit_scale: the multiplier itself (already exponentiated): a number, or a tensor of one
            element on the features' device, which receives its gradient.
        logit_bias: a number or a tensor of one element, likewise.
        normalize: divide each row by its L2 norm first; a zero row stays zero, with zero gradient.
        ids: (B,) int64 on the features' device, or None. Pairs of equal ids other than the own one
            leave the sum.
        group: a torch.distributed process group, every rank of which calls this with the same B;
            None is this process alone.
        backend: "auto", or a backend's name; `backends("sigmoid_loss")` lists them.

    Returns:
        The 0-dim loss, float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; or rows that
            differ between ranks.
        RuntimeError: the backend asked for cannot serve this call.

    Memory: the gradients in float32, made in the forward, and one panel of similarities;
    "reference" several N×N arrays.

    Cost: 3 products of N×N×D for forward and backward; over a group 4 of B×N×D on each rank, which
    receives 2·N·D elements in the features' dtype, N int64 with `ids`, and one number per rank.

    Source: Zhai et al. 2023, arXiv 2303.15343, equation 1 and algorithm 1.
    """
    image, text = check_pairs(image_features, text_features)
    scale = check_scalar("logit_scale", logit_scale, "image_features", image)
    bias = check_scalar("logit_bias", logit_bias, "image_features", image)
    check_integers("ids", ids, "image_features", image)
    group = alone_is_none(group)
    chosen = BACKENDS.choose(backend, image, text, scale, bias, ids)
    all_image = gathered("image_features", image_features, group)
    all_text = gathered("text_features", text_features, group)
    if group is not None and ids is not None:
        ids = GatheredFeatures(ids, group).wait()
    if chosen == "reference":
        world_size = 1 if group is None else dist.get_world_size(group)
        return _reference().sigmoid_loss(
            with_gradient_of_own(all_image, world_size),
            with_gradient_of_own(all_text, world_size),
            scale,
            bias,
            normalize=normalize,
            ids=ids,
        )
    alone = group is None
    wanted = any(x.requires_grad for x in (image, text, scale, bias))
    return torch.ops.clipfast_kernels.sigmoid_fwd(
        image.contiguous(),
        text.contiguous(),
        None if alone else all_image.wait(),
        None if alone else all_text.wait(),
        scale,
        bias,
        None if ids is None else ids.contiguous(),
        normalize,
        chosen,
        "" if group is None else group.group_name,
        all_image.first_row(),
        wanted and torch.is_grad_enabled(),
    )[0]
