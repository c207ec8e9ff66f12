"""The Vision Transformer image tower. B images, L = patches + 1 tokens, W width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipfast.models.layouts import ImageTokens
from clipfast.models.transformer import Transformer


class VisionTransformer(nn.Module):
    """(B, 3, S, S) -> (B, output_dim), not normalised.

    Source: Dosovitskiy et al. 2020, arXiv 2010.11929, with CLIP's additional LayerNorm before the
    transformer (arXiv 2103.00020, §2.4).
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        output_dim: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.image_size, self.output_dim = image_size, output_dim
        scale = width**-0.5
        tokens = (image_size // patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(self, image: Tensor) -> Tensor:
        patches_BLW = self.conv1(image).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches_BLW.dtype).expand(len(image), 1, -1)
        x = torch.cat([class_token, patches_BLW], dim=1) + self.positional_embedding
        pooled = self.transformer(self.ln_pre(x), ImageTokens(self.transformer.heads))
        return self.ln_post(pooled) @ self.proj
