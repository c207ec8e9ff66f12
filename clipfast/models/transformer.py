"""The pre-LayerNorm transformer of both towers, with OpenAI's parameter names.

Only one token per sequence is pooled, so the last block computes keys and values of every token
but query, attention output, projection and MLP of that one: the same function, 10/12 of a block
saved.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from clipfast_kernels import quick_gelu
from torch import Tensor, nn

from clipfast.models.layouts import ImageTokens, PackedTokens

Layout = ImageTokens | PackedTokens


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the activation of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class Attention(nn.Module):
    """Multi-head self-attention with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(layout.attend(qkv))

    def forward_pooled(self, x: Tensor, layout: Layout) -> Tensor:
        """Attention from the pooled tokens alone: (…, W) -> (B, W)."""
        width = x.shape[-1]
        q = F.linear(layout.pooled(x), self.in_proj_weight[:width], self.in_proj_bias[:width])
        kv = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        return self.out_proj(layout.attend_pooled(q, kv))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = activation()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), activation)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self.attn(self.ln_1(x), layout)
        return x + self.mlp(self.ln_2(x))

    def forward_pooled(self, x: Tensor, layout: Layout) -> Tensor:
        pooled = layout.pooled(x) + self.attn.forward_pooled(self.ln_1(x), layout)
        return pooled + self.mlp(self.ln_2(pooled))


class Transformer(nn.Module):
    """Tokens in, one pooled token per sequence out.

    Args:
        width: W.
        layers: number of blocks, at least 1.
        heads: H; divides W.
        mlp_ratio: hidden width of the MLP in units of W.
        activation: the MLP's, `nn.GELU` or `QuickGELU`.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 4.0,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.heads = width, layers, heads
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, mlp_ratio, activation) for _ in range(layers)
        )

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, L, W) or (T, W) as the layout says -> (B, W)."""
        *blocks, last = self.blocks()
        for block in blocks:
            x = block(x, layout)
        return last.forward_pooled(x, layout)

    def blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.resblocks)  # type: ignore[arg-type]

    def init_as_openai(self) -> None:
        """Normal weights of OpenAI's text transformer; its image transformer keeps torch's own."""
        into_residual = self.width**-0.5 * (2 * self.layers) ** -0.5
        for block in self.blocks():
            nn.init.normal_(block.attn.in_proj_weight, std=self.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=into_residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=into_residual)
