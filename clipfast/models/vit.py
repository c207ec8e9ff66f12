"""The Vision Transformer image tower. B images, L = patches + 1 tokens, W width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipfast.models.hooks import has_user_hooks
from clipfast.models.layouts import BatchedTokens
from clipfast.models.locking import Part, lock_groups
from clipfast.models.transformer import LayerNorm, Transformer


class PatchDropout(nn.Module):
    """Training sees a random share of each image's patches, and its class token.

    Args:
        prob: share of the patches that is left out, 0 ≤ prob < 1; one stays at least.

    Source: Li et al. 2022 (FLIP), arXiv 2212.00794.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob

    def forward(self, x_BLW: Tensor) -> Tensor:
        if not self.training:
            return x_BLW
        images, patches = x_BLW.shape[0], x_BLW.shape[1] - 1
        kept = max(1, int(patches * (1 - self.prob)))
        chance = torch.randn(images, patches, device=x_BLW.device)
        places = 1 + chance.topk(kept, dim=1).indices
        places = torch.cat([places.new_zeros(images, 1), places], dim=1)
        return x_BLW.gather(1, places[..., None].expand(-1, -1, x_BLW.shape[2]))


class VisionTransformer(nn.Module):
    """(B, 3, S, S) -> (B, output_dim), not normalised.

    Attributes:
        output_tokens: give the patches' tokens after ln_post too, (B, L − 1, W).

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
        patch_dropout: float = 0.0,
        ls_init_value: float | None = None,
        output_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.output_dim = image_size, output_dim
        self.output_tokens = output_tokens
        self.grid_size = (image_size // patch_size,) * 2
        scale = width**-0.5
        tokens = self.grid_size[0] * self.grid_size[1] + 1
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.patch_dropout = PatchDropout(patch_dropout) if patch_dropout else nn.Identity()
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_ratio, activation, ls_init_value)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self.output_tokens:
            return self.pooled(image) @ self.proj
        tokens = self._every_token(image)
        return tokens[:, 0] @ self.proj, tokens[:, 1:]

    def pooled(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, W), what `proj` projects."""
        if has_user_hooks(self.transformer, self.ln_post):
            return self._every_token(image)[:, 0]
        return self.ln_post(self.transformer(self.embed(image), self._layout))

    def _every_token(self, image: Tensor) -> Tensor:
        return self.ln_post(self.transformer(self.embed(image), self._layout, every_token=True))

    @property
    def _layout(self) -> BatchedTokens:
        return BatchedTokens(self.transformer.heads)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, L, W), the transformer's input."""
        patches_BLW = self.conv1(image).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches_BLW.dtype).expand(len(image), 1, -1)
        x = torch.cat([class_token, patches_BLW], dim=1)
        return self.ln_pre(self.patch_dropout(x + self.positional_embedding.to(x.dtype)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.grad_checkpointing = enable

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes all but the last groups of: embeddings and ln_pre; each block, the last one with
        ln_post; proj. There is no BatchNorm."""
        *blocks, last = self.transformer.blocks()
        groups: list[Sequence[Part]] = [
            [self.conv1, self.class_embedding, self.positional_embedding, self.ln_pre],
            *([part] for part in blocks),
            [last, self.ln_post],
            [self.proj],
        ]
        lock_groups(groups, unlocked_groups)
