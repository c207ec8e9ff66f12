"""What the Triton kernels of the losses and of the similarity share: a tile's dot products, the
configurations that are shipped, and the host's side of a launch.

Shapes: n rows, N columns, D features; a tile is BLOCK_M × BLOCK_N.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Config(NamedTuple):
    """Of a launch: a tile's sides, its step through the features, warps and pipeline stages."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    num_warps: int
    num_stages: int


# By the inputs' element size. 32-bit products run on the ordinary cores, which smaller tiles feed.
# The largest tiles that spill no register on any target: 128 × 128 does on all of them.
PAIR_CONFIGS = {2: Config(128, 64, 64, 8, 2), 4: Config(64, 32, 32, 8, 2)}
SIMILARITY_CONFIGS = {2: Config(64, 32, 64, 4, 2), 4: Config(64, 64, 32, 8, 1)}

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Programs that fill the largest chip twice; fewer rows than that are split by columns.
_PROGRAMS = 264


def unusable(*tensors: Tensor) -> list[str]:
    """Why the Triton kernels cannot serve these tensors or, with none, this machine."""
    reasons = []
    if not INTERPRETED and not torch.cuda.is_available():
        reasons.append("there is no GPU; TRITON_INTERPRET=1 runs the kernels slowly on the CPU")
    for device in sorted({t.device.type for t in tensors}):
        if device != ("cpu" if INTERPRETED else "cuda"):
            reasons.append(f"a tensor is on {device}, and this backend is for GPUs")
    served = {torch.float16, torch.float32, torch.int64}
    if not INTERPRETED:  # where the products of bfloat16 are wrong
        served.add(torch.bfloat16)
    for dtype in sorted({str(t.dtype) for t in tensors if t.ndim > 1 and t.dtype not in served}):
        known = ", ".join(sorted(str(d).removeprefix("torch.") for d in served - {torch.int64}))
        reasons.append(f"a tensor is {dtype}, and this backend takes {known} here")
    return reasons


def launch_options(config: Config) -> dict[str, Any]:
    return {**config._asdict(), "PRECISION": "ieee"}


def column_splits(row_blocks: int, column_blocks: int) -> tuple[int, int]:
    """How many programs share a row's columns, and how many tiles each of them takes."""
    wanted = min(column_blocks, max(1, -(-_PROGRAMS // row_blocks)))
    tiles = -(-column_blocks // wanted)
    return -(-column_blocks // tiles), tiles


def merge_sums(partial: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Stacked maxima and Σ e^{z − maximum} of parts, as those of the whole along a dimension."""
    maxima, sums = partial
    best = maxima.amax(dim=dim, keepdim=True)
    anchor = torch.where(best == -torch.inf, 0.0, best)
    return best.squeeze(dim), (sums * (maxima - anchor).exp()).sum(dim=dim)


def factors(x: Tensor) -> Tensor:
    """(n, 2) float32 for `logit_tile`: value · (1 + error) of a float64 vector."""
    value = x.float()
    error = torch.where(x == 0, 0.0, (x - value) / torch.where(x == 0, 1.0, x))
    return torch.stack([value, error.float()], dim=1)


def high_and_low(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float64 vector as two of float32 whose sum it is."""
    high = x.float()
    return high, (x - high).float()


@triton.jit
def dot_tile(
    x,
    y,
    row,
    col,
    n,
    N,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x[row] · y[col]ᵀ, (BLOCK_M, BLOCK_N) in float32; rows and columns beyond the last are 0."""
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    d = tl.arange(0, BLOCK_D)
    x_row = x + row.to(tl.int64)[:, None] * D
    y_col = y + col.to(tl.int64)[None, :] * D
    for first in range(0, D, BLOCK_D):
        at = first + d
        a = tl.load(x_row + at[None, :], mask=(row < n)[:, None] & (at < D)[None, :], other=0.0)
        b = tl.load(y_col + at[:, None], mask=(col < N)[None, :] & (at < D)[:, None], other=0.0)
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def logit_tile(
    x,
    y,
    x_factor,
    y_factor,
    row,
    col,
    n,
    N,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tile's dot products times x_factor_i · y_factor_j, both as value · (1 + error)."""
    z = dot_tile(x, y, row, col, n, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    z = z * tl.load(x_factor + 2 * row, mask=row < n, other=0.0)[:, None]
    z = z * tl.load(y_factor + 2 * col, mask=col < N, other=0.0)[None, :]
    x_error = tl.load(x_factor + 2 * row + 1, mask=row < n, other=0.0)
    y_error = tl.load(y_factor + 2 * col + 1, mask=col < N, other=0.0)
    return z + z * (x_error[:, None] + y_error[None, :])


@triton.jit
def left_out(ids, row, col, n, N, offset, HAS_IDS: tl.constexpr):
    """(BLOCK_M, BLOCK_N): columns beyond the last, positives, and those of the row's own id."""
    out = (col >= N)[None, :] | (col[None, :] == (offset + row)[:, None])
    if HAS_IDS:
        own = tl.load(ids + offset + row, mask=row < n, other=0)
        other = tl.load(ids + col, mask=col < N, other=0)
        out = out | (own[:, None] == other[None, :])
    return out


def unit_rows(x: Tensor, inv_norm: Tensor, normalize: bool) -> Tensor:
    """x̂ in x's dtype, for the products with a panel; x itself without normalisation."""
    return (x * inv_norm[:, None].float()).to(x.dtype) if normalize else x


def panel_scale(dtype: torch.dtype) -> float:
    """What a panel of probabilities is multiplied by: float16 loses those below 6e-8."""
    return 2.0**14 if dtype == torch.float16 else 1.0
