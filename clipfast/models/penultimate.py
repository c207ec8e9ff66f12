"""Image towers in two parts: the features that linear probes learn from, and their projection.

B images, S the model's image size, W width, D the shared space's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipfast.models.vit import VisionTransformer


class ImageParts(NamedTuple):
    """encode_image(x) = head(trunk(x)).

    Attributes:
        trunk: (B, 3, S, S) -> (B, W), the penultimate features.
        head: (B, W) -> (B, D).
    """

    trunk: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


def image_parts(model: Any) -> ImageParts:
    """Vision transformers, ours and open_clip's, end in a projection, and timm's towers in a head.
    Of others, attention pooling's output among them, the embedding itself is penultimate.

    Args:
        model: ours or open_clip's.

    Source: Radford et al. 2021, arXiv 2103.00020, appendix A.3.
    """
    visual = model.visual
    projection = getattr(visual, "proj", None)
    if isinstance(visual, VisionTransformer) and not visual.output_tokens:
        return ImageParts(visual.pooled, lambda x: x @ visual.proj)
    if hasattr(visual, "trunk") and isinstance(getattr(visual, "head", None), nn.Module):
        return ImageParts(visual.trunk, visual.head)
    if isinstance(projection, nn.Parameter) and not getattr(visual, "output_tokens", False):
        return ImageParts(_Unprojected(visual), lambda x: x @ visual.proj)
    return ImageParts(model.encode_image, nn.Identity())


class _Unprojected:
    """A tower of open_clip's, which leaves out a projection that it has not."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    def __call__(self, image: Tensor) -> Tensor:
        projection = self.visual.proj
        self.visual.proj = None
        try:
            return torch.as_tensor(self.visual(image))
        finally:
            self.visual.proj = projection
