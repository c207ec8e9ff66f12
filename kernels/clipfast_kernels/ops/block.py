"""What a backend of the losses is asked for: one block of the pair matrix, and what comes back.

A block is n rows of one tower against all N of the other. One process alone has one symmetric
block, whose columns' results are wanted as well. A rank among several has two, its image rows
against all texts and its text rows against all images, and wants the rows' results of each.

Shapes: n rows, N columns, D features. Logits z_ij = logit_scale · x̂_i·ŷ_j (+ bias), x̂ = x/‖x‖ where
normalising and x otherwise. Row i's positive is column offset + i. A pair counts ("is kept") if it
is a positive or its ids differ.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    x: Tensor  # (n, D) rows
    y: Tensor  # (N, D) columns, same dtype and device
    logit_scale: Tensor  # one element, any floating dtype, on x's device
    ids: Tensor | None  # (N,) int64 of the columns; row i has ids[offset + i]
    offset: int
    normalize: bool
    symmetric: bool  # offset == 0, n == N, and the columns' results are wanted


class SoftmaxForward(NamedTuple):
    """Vectors are float64 (float32 where the device has no float64); "empty" is shape (0,)."""

    row_nll: Tensor  # (n,) log(1 + Σ_{kept j ≠ positive} e^{z_ij − z_ii}), ≥ 0
    col_nll: Tensor  # (N,) likewise over the column; empty unless symmetric
    positive: Tensor  # (n,) z_i,offset+i
    x_inv_norm: Tensor  # (n,) 1/‖x_i‖, 0 for a zero row, 1 where not normalising
    y_inv_norm: Tensor  # (N,)
    row_hit: Tensor  # (n,) bool: no other kept logit of the row exceeds the positive; empty
    col_hit: Tensor  # unless asked for; (N,) bool of the columns, empty unless symmetric too


class SoftmaxSaved(NamedTuple):
    """What the backward knows of the whole problem. float64 vectors."""

    x_inv_norm: Tensor  # (n,)
    y_inv_norm: Tensor  # (N,)
    row_lse: Tensor  # (n,) log-sum-exp of the rows
    col_lse: Tensor  # (N,) of the columns
    positive: Tensor  # (n,)
    row_smoothing: Tensor | None  # (n,) w_i = ε/|A_i|; None where ε = 0
    col_smoothing: Tensor | None  # (N,)
    label_smoothing: float  # ε


class SigmoidForward(NamedTuple):
    loss: Tensor  # 0-dim float64: Σ over the block's kept pairs of softplus(∓z)
    d_x: Tensor  # (n, D) float32/float64: gradients of that sum; empty unless asked for
    d_y: Tensor  # (N, D), empty unless asked for and symmetric
    d_scale: Tensor  # 0-dim float64
    d_bias: Tensor  # 0-dim float64
