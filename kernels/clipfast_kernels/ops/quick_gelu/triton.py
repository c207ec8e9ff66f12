"""x·σ(1.702 x) in Triton. n elements."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipfast_kernels.ops import triton_tile
from clipfast_kernels.ops.triton_tile import Config

CONFIG = Config(1024, 0, 0, 4, 1)


def unusable(*tensors: Tensor) -> list[str]:
    # The shared check passes over vectors, which other ops have beside their features.
    return triton_tile.unusable(*(t[None, None] for t in tensors))


@triton.jit
def quick_gelu_fwd_kernel(x, y, n, BLOCK_M: tl.constexpr):
    """Computes: y = x·σ(1.702 x).
    Grid: ceil(n / BLOCK_M). Each program owns BLOCK_M elements.
    FLOPs: about 25 an element. HBM bytes: x read, y written; the limit.
    Computes in: float32.
    Deterministic: yes. Interpreted and compiled; no GPU has run it.
    Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, §2.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.load(x + i, mask=i < n).to(tl.float32)
    tl.store(y + i, at * tl.sigmoid(1.702 * at), mask=i < n)


@triton.jit
def quick_gelu_bwd_kernel(d_y, x, d_x, n, BLOCK_M: tl.constexpr):
    """Computes: d_x = d_y·σ·(1 + 1.702 x (1 − σ)), σ = σ(1.702 x).
    Grid: ceil(n / BLOCK_M). Each program owns BLOCK_M elements.
    FLOPs: about 30 an element. HBM bytes: d_y and x read, d_x written; the limit.
    Computes in: float32.
    Deterministic: yes. Interpreted and compiled; no GPU has run it.
    Source: as the forward.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    z = 1.702 * tl.load(x + i, mask=i < n).to(tl.float32)
    s = tl.sigmoid(z)
    slope = s * (1 + z * (1 - s))
    tl.store(d_x + i, tl.load(d_y + i, mask=i < n).to(tl.float32) * slope, mask=i < n)


def forward(x: Tensor) -> Tensor:
    y, n = torch.empty_like(x), x.numel()
    if n > 0:
        quick_gelu_fwd_kernel[_grid(n)](x, y, n, **_options())
    return y


def backward(d_y: Tensor, x: Tensor) -> Tensor:
    d_x, n = torch.empty_like(x), x.numel()
    if n > 0:
        quick_gelu_bwd_kernel[_grid(n)](d_y, x, d_x, n, **_options())
    return d_x


def _grid(n: int) -> tuple[int]:
    return (triton.cdiv(n, CONFIG.BLOCK_M),)


def _options() -> dict[str, int]:
    return {"BLOCK_M": CONFIG.BLOCK_M, "num_warps": CONFIG.num_warps}
