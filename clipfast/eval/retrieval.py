"""Retrieval: each image's texts among all texts, and each text's image among all images.

I images, T texts, D features; N pairs where every image has one text.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from clipfast_kernels import contrastive_loss
from torch import Tensor

from clipfast.eval.standing import Standing, standing_of

_AT = (1, 5, 10)
# Similarities of unit vectors are rounded by less, in whatever order they are summed.
_ROUNDING = 1e-4
_PANEL = 8192  # texts whose own images are gathered at once


def retrieval_metrics(
    image_features: Tensor,
    text_features: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    image_of_text: Tensor | None = None,
) -> dict[str, float]:
    """Recall at 1, 5 and 10, mean and median rank, in both directions, under open_clip's names.

    An image with several texts is given the best rank among them, as is usual for Karpathy's
    splits; each text has its one image.

    Args:
        image_features: (I, D) of unit length. The same on every rank, as all arguments.
        text_features: (T, D) of unit length.
        group: whose ranks share the queries; None is this process alone.
        image_of_text: (T,) int64, each text's image, in any order; None is one text per image, in
            the images' order.

    Returns:
        The same on every rank.

    Raises:
        ValueError: no pair, or an `image_of_text` that is not one image per text, with a text for
            every image.

    Memory: a panel of similarities.

    Source: Radford et al. 2021, arXiv 2103.00020, table 13; Karpathy and Li 2015, arXiv 1412.2306.
    """
    images, texts = image_features, text_features
    own = torch.arange(len(texts)) if image_of_text is None else image_of_text
    _check_pairs(own, len(images), len(texts))
    own = own.to(texts.device)
    if bool((own.diff() < 0).any()):
        # In the images' order, which the search goes through fastest.
        own, order = own.sort(stable=True)
        texts = texts[order]
    standings = {
        "image_to_text": _of_best_texts(images, texts, own, group),
        "text_to_image": _of_all(texts, images, own, group),
    }
    metrics = {}
    for name, standing in standings.items():
        metrics[f"{name}_mean_rank"] = standing.mean_rank()
        metrics[f"{name}_median_rank"] = standing.median_rank()
        metrics |= {f"{name}_R@{k}": standing.recall(k) for k in _AT}
    return metrics


def clip_benchmark_names(metrics: dict[str, float]) -> dict[str, float]:
    """The recalls of `retrieval_metrics` as CLIP_benchmark calls them, by what is retrieved."""
    retrieved = {"image": "text_to_image", "text": "image_to_text"}
    return {
        f"{what}_retrieval_recall@{k}": metrics[f"{direction}_R@{k}"]
        for what, direction in retrieved.items()
        for k in _AT
    }


def batchwise_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, batch_size: int
) -> float:
    """The contrastive loss of each batch, averaged over pairs; the last batch may be smaller.

    Args:
        image_features, text_features: (N, D) of unit length.
        logit_scale: the multiplier.
        batch_size: negatives come from a pair's own batch.
    """
    total = 0.0
    batches = zip(image_features.split(batch_size), text_features.split(batch_size), strict=True)
    for image, text in batches:
        loss = contrastive_loss(image, text, logit_scale, normalize=False)
        total += loss.item() * len(image)
    return total / len(image_features)


def _of_all(
    queries: Tensor, keys: Tensor, right: Tensor, group: dist.ProcessGroup | None
) -> Standing:
    """Each rank finds its share."""
    rank, ranks = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    share = slice(len(queries) * rank // ranks, len(queries) * (rank + 1) // ranks)
    return standing_of(queries[share], keys, right[share]).of_all_ranks(group)


def _of_best_texts(
    images: Tensor, texts: Tensor, own: Tensor, group: dist.ProcessGroup | None
) -> Standing:
    """Of each image's most similar text of its own. Those that rounding might make the most similar
    are all searched for, and the ranks found tell which is."""
    if len(images) == len(texts):
        return _of_all(images, texts, own, group)
    candidates = _nearly_best(images, texts, own)
    image = own[candidates]
    above, tied, _ = _of_all(images[image], texts, candidates, group)
    least = above.new_full((len(images),), len(texts)).scatter_reduce(0, image, above, "amin")
    # A text less similar than another has that one above it: equal counts are equal similarities.
    best = above == least[image]
    right = torch.zeros_like(least).scatter_add(0, image, best.long())
    most = torch.zeros_like(least).scatter_reduce(0, image, tied * best, "amax")
    return Standing(least, torch.maximum(most, right), right)


def _nearly_best(images: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """The texts that are as similar to their image as its best one, but for rounding."""
    pairs = zip(own.split(_PANEL), texts.split(_PANEL), strict=True)
    similar = torch.cat([(images[i].float() * text.float()).sum(dim=1) for i, text in pairs])
    lowest = similar.new_full((len(images),), -torch.inf)
    best = lowest.scatter_reduce(0, own, similar, "amax")
    worse = similar < best[own] - _ROUNDING  # never of a NaN
    return (~worse).nonzero()[:, 0]


def _check_pairs(own: Tensor, images: int, texts: int) -> None:
    if own.dtype != torch.int64 or own.shape != (texts,) or not texts:
        raise ValueError(
            f"image_of_text: expected int64 ({texts},), one image for each of 1 or more texts; "
            f"got {own.dtype} {tuple(own.shape)}"
        )
    least, most = int(own.min()), int(own.max())
    if least < 0 or most >= images:
        raise ValueError(f"image_of_text: expected images 0 to {images - 1}; got {least} to {most}")
    without = int((own.bincount(minlength=images) == 0).sum())
    if without:
        raise ValueError(
            f"image_of_text: expected a text for each of {images} images; got none for {without}"
        )
