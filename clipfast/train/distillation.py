"""The distance of the student's similarities from a teacher's, a panel of them at a time.

B pairs on each of W ranks, N = W·B, D features, P rows of a panel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from clipfast_kernels import GatheredFeatures, start_gather
from clipfast_kernels.ops.panel import panels
from torch import Tensor


def distillation_loss(
    image_features: Tensor | GatheredFeatures,
    text_features: Tensor | GatheredFeatures,
    logit_scale: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    teacher_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy of the student's softmax under the teacher's, mean over rows of S and of Sᵀ.

    Equivalent PyTorch, with unit rows, S = s·I Tᵀ of the student and R that of the teacher::

        def one_way(r, s):
            return -(r.softmax(1) * s.log_softmax(1)).sum(1).mean()
        (one_way(R, S) + one_way(R.T, S.T)) / 2

    Over a process group the rows are those of all ranks. The value is the same on every rank, and
    each rank's gradient is W times its share, as `contrastive_loss`'s is.

    Args:
        image_features, text_features: (B, D) float32 or float64, of any length, or their
            `start_gather` handles.
        logit_scale: 0-dim, the multiplier; receives its gradient.
        teacher_image, teacher_text: (B, D'), of the same dtype; constants.
        teacher_scale: 0-dim.
        group: of all ranks, each with the same B; None is this process alone.

    Memory: O(N·D) and four panels of similarities.

    Cost: 10 products of B×N×D on each rank.

    Source: the loss is open_clip_torch 3.3.0's `DistillClipLoss`; Hinton et al. 2015,
    arXiv 1503.02531.
    """
    handles = [_handle(x, group) for x in (image_features, text_features)]
    with torch.no_grad():
        teacher = [_unit_rows(_handle(x, group)) for x in (teacher_image, teacher_text)]
    (image, all_image), (text, all_text) = (_unit_rows(handle) for handle in handles)
    (r_image, r_all_image), (r_text, r_all_text) = teacher
    sides = _Side(all_text, r_image, r_all_text), _Side(all_image, r_text, r_all_image)
    constants = _Constants(sides, teacher_scale.detach(), handles[0].first_row(), group)
    loss: Tensor = _Distillation.apply(image, text, logit_scale, constants)
    return loss


def _handle(
    features: Tensor | GatheredFeatures, group: dist.ProcessGroup | None
) -> GatheredFeatures:
    return start_gather(features, group) if isinstance(features, Tensor) else features


def _unit_rows(handle: GatheredFeatures) -> tuple[Tensor, Tensor]:
    """This rank's, with their graph, and all ranks', without."""
    return F.normalize(handle.local, dim=1), F.normalize(handle.wait(), dim=1)


class _Side(NamedTuple):
    """What this rank's rows x of one tower meet: all rows of the other, and the teacher's rows."""

    y: Tensor  # (N, D)
    teacher_x: Tensor  # (B, D')
    teacher_y: Tensor  # (N, D')


class _Constants(NamedTuple):
    sides: tuple[_Side, _Side]  # of image rows, of text rows
    teacher_scale: Tensor
    first_row: int  # of this rank among all
    group: dist.ProcessGroup | None


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, constants: _Constants
    ) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            swept = [
                _forward_side(x, side, scale, constants.teacher_scale)
                for x, side in zip((image, text), constants.sides, strict=True)
            ]
            # Column by column: both softmaxes' log-sum-exps and the loss, of image, then text rows.
            of_rows_N6 = start_gather(torch.cat(swept, dim=1), constants.group).wait()
        ctx.save_for_backward(image, text, scale, of_rows_N6)
        ctx.constants = constants
        return of_rows_N6[:, [2, 5]].sum() / (2 * len(of_rows_N6))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, of_rows_N6 = ctx.saved_tensors
        sides, teacher_scale, first_row, _ = ctx.constants
        of_image, of_text = of_rows_N6[:, :2], of_rows_N6[:, 3:5]
        own = slice(first_row, first_row + len(image))
        # Ranks' gradients are averaged afterwards, so each gives W times its share: 1/2B, not 1/2N.
        factor = d_loss / (2 * len(image))
        with torch.autocast(image.device.type, enabled=False):
            d_image, d_scale = _backward_side(
                image, sides[0], scale, teacher_scale, of_image[own], of_text
            )
            d_text, _ = _backward_side(text, sides[1], scale, teacher_scale, of_text[own], of_image)
        return factor * scale * d_image, factor * scale * d_text, factor * d_scale, None


def _forward_side(x: Tensor, side: _Side, scale: Tensor, teacher_scale: Tensor) -> Tensor:
    """(B, 3): log-sum-exp of the student's row and of the teacher's, and the row's loss."""
    of_rows = x.new_empty(len(x), 3)
    for rows in panels(len(x), len(side.y)):
        z_PN, r_PN = _logits(x, side, scale, teacher_scale, rows)
        z_lse, r_lse = z_PN.logsumexp(dim=1), r_PN.logsumexp(dim=1)
        r_PN.sub_(r_lse[:, None]).exp_()
        loss = -(r_PN.mul_(z_PN.sub_(z_lse[:, None]))).sum(dim=1)
        of_rows[rows] = torch.stack([z_lse, r_lse, loss], dim=1)
    return of_rows


def _backward_side(
    x: Tensor, side: _Side, scale: Tensor, teacher_scale: Tensor, own: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_j G_ij ŷ_j for each row i, and Σ_ij G_ij x̂_i·ŷ_j, with G = the student's softmaxes along
    both ways minus the teacher's.

    Args:
        own, other: (B, 2) and (N, 2) log-sum-exps of the student and the teacher, of x's rows and
            of y's.
    """
    d_x, d_scale = torch.empty_like(x), x.new_zeros(())
    for rows in panels(len(x), len(side.y)):
        z_PN, r_PN = _logits(x, side, scale, teacher_scale, rows)
        g_PN = (z_PN - own[rows, :1]).exp_() + z_PN.sub_(other[:, 0]).exp_()
        g_PN -= (r_PN - own[rows, 1:]).exp_()
        g_PN -= r_PN.sub_(other[:, 1]).exp_()
        d_x[rows] = g_PN @ side.y
        d_scale += (d_x[rows] * x[rows]).sum()
    return d_x, d_scale


def _logits(
    x: Tensor, side: _Side, scale: Tensor, teacher_scale: Tensor, rows: slice
) -> tuple[Tensor, Tensor]:
    """(P, N) of the student, and of the teacher."""
    student_PN = (scale * x[rows]) @ side.y.T
    return student_PN, (teacher_scale * side.teacher_x[rows]) @ side.teacher_y.T
