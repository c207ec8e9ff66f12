"""Learned positions for another image size or context length, as open_clip resizes them.

L positions, W width, S the side of a square grid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_grid(positions_LW: Tensor, length: int) -> Tensor:
    """Image positions: the first token's is kept, the S × S grid is resampled, bicubic with
    antialiasing.

    Args:
        positions_LW: (1 + S², W) floating point; S = ⌊√(L - 1)⌋ must give exactly that.
        length: 1 + S'², of the grid to make.

    Returns:
        (length, W) float32.

    Raises:
        ValueError: either length is not one more than a square.
    """
    sides = [math.isqrt(max(n - 1, 0)) for n in (len(positions_LW), length)]
    if [1 + side**2 for side in sides] != [len(positions_LW), length] or 0 in sides:
        raise ValueError(
            f"positions: expected one more than a square; got {len(positions_LW)} to {length}"
        )
    old, new = sides
    first, grid = positions_LW[:1].float(), positions_LW[1:].float()
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T])


def resize_sequence(positions_LW: Tensor, length: int) -> Tensor:
    """Text positions: (L, W) floating point -> (length, W) float32, linear in the position."""
    sequence = positions_LW.float().T[None]
    return F.interpolate(sequence, length, mode="linear", align_corners=False)[0].T.contiguous()
