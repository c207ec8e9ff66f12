"""The pre-LayerNorm transformer of both towers, with OpenAI's parameter names.

Only one token per sequence is pooled, so the last block computes keys and values of every token
but query, attention output, projection and MLP of that one: the same function, 10/12 of a block
saved.

The functions take any modules with these names, so `clipfast.accelerate` runs open_clip's own
blocks through them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from clipfast_kernels import quick_gelu
from torch import Tensor, nn

from clipfast.models.layouts import Layout
from clipfast.models.linear import Linear, linear, linear_then
from clipfast.models.recompute import recomputed


def attend(attn: Any, x: Tensor, layout: Layout, pooled: bool = False) -> Tensor:
    """Multi-head self-attention of x, or from its pooled tokens alone: (…, W) -> (…, W) or (B, W).

    Args:
        attn: a module with the parameters of `nn.MultiheadAttention`.
    """
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if not pooled:
        out: Tensor = attn.out_proj(layout.attend(linear(x, weight, bias)))
        return out
    width = x.shape[-1]
    q = linear(layout.pooled(x), weight[:width], bias[:width])
    kv = linear(x, weight[width:], bias[width:])
    pooled_out: Tensor = attn.out_proj(layout.attend_pooled(q, kv))
    return pooled_out


def residual_block(block: Any, x: Tensor, layout: Layout, pooled: bool = False) -> Tensor:
    """One block on every token, or of the pooled tokens alone: (…, W) -> (…, W) or (B, W).

    Args:
        block: a module with ln_1, attn, ls_1, ln_2, mlp and ls_2; attn goes as `attend` does.
    """
    skip = layout.pooled(x) if pooled else x
    x = skip + block.ls_1(block.attn(block.ln_1(x), layout, pooled))
    out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return out


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    layout: Layout,
    *,
    every_token: bool = False,
    recompute: bool = False,
) -> Tensor:
    """Every token in; one pooled token per sequence out, (B, W), or all of them if `every_token`.

    Args:
        blocks: called as ``block(x, layout, pooled)``.
        recompute: keep the blocks' inputs only, and compute the rest again in the backward.
    """
    *first, last = blocks
    for block in first:
        x = recomputed(block, x, layout, False) if recompute else block(x, layout, False)
    pooled = not every_token
    return recomputed(last, x, layout, pooled) if recompute else last(x, layout, pooled)


class LayerNorm(nn.LayerNorm):
    """In its parameters' dtype, whatever comes in and goes out: half-precision models keep them
    in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x).to(x.dtype)  # autocast gives float32
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the activation of OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class LayerScale(nn.Module):
    """A gain per channel on a block's branch. Source: Touvron et al. 2021, arXiv 2103.17239."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, layout: Layout, pooled: bool = False) -> Tensor:
        return attend(self, x, layout, pooled)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.gelu = activation()
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(linear_then(self.gelu, x, self.c_fc))


class ResidualAttentionBlock(nn.Module):
    def __init__(
        self,
        width: int,
        mlp_ratio: float,
        activation: type[nn.Module],
        ls_init_value: float | None = None,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)

        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width)
        self.ls_1 = scale()
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), activation)
        self.ls_2 = scale()

    def forward(self, x: Tensor, layout: Layout, pooled: bool = False) -> Tensor:
        return residual_block(self, x, layout, pooled)


class Transformer(nn.Module):
    """Tokens in, one pooled token per sequence out.

    Args:
        width: W.
        layers: number of blocks, at least 1.
        heads: H; divides W.
        mlp_ratio: hidden width of the MLP in units of W.
        activation: the MLP's, `nn.GELU` or `QuickGELU`.
        ls_init_value: of a `LayerScale` on each branch; None has none.

    Attributes:
        grad_checkpointing: keep the blocks' inputs only; the backward computes the rest again.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 4.0,
        activation: type[nn.Module] = nn.GELU,
        ls_init_value: float | None = None,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.heads = width, layers, heads
        self.grad_checkpointing = False
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, mlp_ratio, activation, ls_init_value)
            for _ in range(layers)
        )

    def forward(self, x: Tensor, layout: Layout, every_token: bool = False) -> Tensor:
        """(B, L, W) or (T, W) as the layout says -> (B, W), or x's shape if `every_token`."""
        return run_blocks(
            self.resblocks,
            x,
            layout,
            every_token=every_token,
            recompute=self.grad_checkpointing and torch.is_grad_enabled(),
        )

    def get_cast_dtype(self) -> torch.dtype:
        """The dtype of the tokens: the matrices', where half precision has two."""
        return self.blocks()[0].mlp.c_fc.weight.dtype

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
