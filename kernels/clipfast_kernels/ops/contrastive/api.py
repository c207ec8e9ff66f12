"""`contrastive_loss`: CLIP's softmax loss over all pairs of a batch.

Shapes: B local pairs on each of W ranks, N = W·B pairs, D features.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast_kernels.dispatch import Op
from clipfast_kernels.distributed import GatheredFeatures, alone_is_none, gathered
from clipfast_kernels.ops.arguments import check_integers, check_pairs, check_scalar
from clipfast_kernels.ops.contrastive import operator as _operator  # noqa: F401  registers the operator
from clipfast_kernels.ops.rows import with_gradient_of_own


def _cpu() -> ModuleType:
    from clipfast_kernels.ops.contrastive import cpu

    return cpu


def _torch() -> ModuleType:
    from clipfast_kernels.ops.contrastive import panels

    return panels


def _triton() -> ModuleType:
    from clipfast_kernels.ops.contrastive import triton

    return triton


def _reference() -> ModuleType:
    from clipfast_kernels.ops.contrastive import reference

    return reference


def _trials() -> ModuleType:
    from clipfast_kernels.ops.contrastive import trials

    return trials


BACKENDS = Op(
    name="contrastive_loss",
    modules={"cpu": _cpu, "torch": _torch, "triton": _triton, "reference": _reference},
    planned={"cuda": "clipfast has no CUDA kernel for this op: its products are the vendor's"},
    trials=_trials,
)


class LossWithMetrics(NamedTuple):
    """What `contrastive_loss_with_metrics` returns; all 0-dim, over all ranks' pairs.

    Attributes:
        loss: as `contrastive_loss`.
        image_top1: the share of images whose own text no other kept text exceeds.
        text_top1: the share of texts whose own image no other kept image exceeds.
        positive_logit: the mean of S_ii.
    """

    loss: Tensor
    image_top1: Tensor
    text_top1: Tensor
    positive_logit: Tensor


def contrastive_loss(
    image_features: Tensor | GatheredFeatures,
    text_features: Tensor | GatheredFeatures,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> Tensor:
    """mean_i (LSE_j S_ij + LSE_j S_ji − 2 S_ii) / 2, with S = logit_scale · Î T̂ᵀ.

    Equivalent PyTorch::

        i, t = F.normalize(image_features, dim=1), F.normalize(text_features, dim=1)
        logits, labels = logit_scale * i @ t.T, torch.arange(len(i))
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    Over a process group the rows are those of all ranks, in rank order, and the value is the same
    on every rank. Each rank's gradient is W times its share of the loss's gradient, so that the
    average over ranks, which data-parallel engines take, is exactly the gradient of the loss
    (what open_clip gives with ``--local-loss --gather-with-grad``).

    Args:
        image_features: (B, D) float32, float64, float16 or bfloat16, or their `start_gather`
            handle; row i is the pair of row i of `text_features`.
        text_features: (B, D), of the same dtype and on the same device.
        logit_scale: the multiplier itself (already exponentiated): a number, or a tensor of one
            element on the features' device, which receives its gradient.
        normalize: divide each row by its L2 norm first. A zero row then stays zero and gets a
            zero gradient. False takes the rows as they are.
        ids: (B,) int64 on the features' device, or None. Pairs of equal ids are not negatives of
            each other: they leave the denominator in both directions, across ranks too.
        label_smoothing: ε in [0, 1): each direction's target is 1 − ε on the positive plus ε
            spread evenly over all columns in the denominator, the positive among them.
        group: a torch.distributed process group, every rank of which calls this with the same B;
            None is this process alone.
        backend: "auto", or a backend's name; `backends("contrastive_loss")` lists them.

    Returns:
        The 0-dim loss, float32 (float64 for float64 features). NaN in a feature gives NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or range; or
            rows that differ between ranks.
        RuntimeError: the backend asked for cannot serve this call.

    Memory: O(N·D) and one panel of similarities; "reference" several N×N arrays.

    Cost: 4 products of N×N×D for forward and backward; over a group 6 of B×N×D on each rank, which
    receives 2·N·D elements in the features' dtype and 2·N of float32 (float64 for float64), plus N
    int64 with `ids`. No collective in the backward.

    Source: Radford et al. 2021, arXiv 2103.00020, figure 3; the chunked form follows
    arXiv 2410.17243 with one recomputation instead of two.
    """
    return _loss(
        image_features, text_features, logit_scale, normalize, ids, label_smoothing, group, backend,
        with_metrics=False,
    )[0]  # fmt: skip


def contrastive_loss_with_metrics(
    image_features: Tensor | GatheredFeatures,
    text_features: Tensor | GatheredFeatures,
    logit_scale: Tensor | float,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> LossWithMetrics:
    """`contrastive_loss`, and how well the pairs are found, from the same sweep.

    Equivalent PyTorch: ``(logits.argmax(1) == labels).float().mean()`` and its transpose for the
    top-1 shares, where a tie with the positive counts as found (argmax leaves it open).

    Args, Raises, Memory: as `contrastive_loss`.

    Returns:
        LossWithMetrics(loss, image_top1, text_top1, positive_logit); only the loss has a gradient.
        Over a group two numbers per rank travel on top.
    """
    loss, metrics = _loss(
        image_features, text_features, logit_scale, normalize, ids, label_smoothing, group, backend,
        with_metrics=True,
    )  # fmt: skip
    return LossWithMetrics(loss, *metrics.to(loss.dtype).unbind())


def _loss(
    image_features: Tensor | GatheredFeatures,
    text_features: Tensor | GatheredFeatures,
    logit_scale: Tensor | float,
    normalize: bool,
    ids: Tensor | None,
    label_smoothing: float,
    group: dist.ProcessGroup | None,
    backend: str,
    with_metrics: bool,
) -> tuple[Tensor, Tensor]:
    image, text = check_pairs(image_features, text_features)
    scale = check_scalar("logit_scale", logit_scale, "image_features", image)
    check_integers("ids", ids, "image_features", image)
    if not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"label_smoothing: expected a number; got {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected 0 ≤ ε < 1; got {label_smoothing}")
    group = alone_is_none(group)
    chosen = BACKENDS.choose(backend, image, text, scale, ids)
    all_image = gathered("image_features", image_features, group)
    all_text = gathered("text_features", text_features, group)
    if group is not None and ids is not None:
        ids = GatheredFeatures(ids, group).wait()
    if chosen == "reference":
        world_size = 1 if group is None else dist.get_world_size(group)
        return _reference().contrastive_loss(
            with_gradient_of_own(all_image, world_size),
            with_gradient_of_own(all_text, world_size),
            scale,
            normalize=normalize,
            ids=ids,
            label_smoothing=label_smoothing,
        )
    alone = group is None
    outputs = torch.ops.clipfast_kernels.contrastive_fwd(
        image.contiguous(),
        text.contiguous(),
        None if alone else all_image.wait(),
        None if alone else all_text.wait(),
        scale,
        None if ids is None else ids.contiguous(),
        normalize,
        label_smoothing,
        chosen,
        "" if group is None else group.group_name,
        all_image.first_row(),
        with_metrics,
    )
    return outputs[0], outputs[1]
