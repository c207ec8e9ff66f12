"""BatchNorm modules computed by our kernel where it serves."""

from __future__ import annotations

import torch.nn.functional as F
from clipfast_kernels import batch_norm
from torch import Tensor, nn

from clipfast.models.hooks import has_user_hooks


def normalized(norm: nn.Module, x: Tensor, *, relu: bool = False) -> Tensor:
    """``norm(x)``, or ``relu(norm(x))``; on a CPU in one pass and without torch's loss of a digit.

    Modules that were put in a BatchNorm's place (SyncBatchNorm, a frozen one), and those with a
    hook, compute for themselves.
    """
    if type(norm) is not nn.BatchNorm2d or x.device.type != "cpu" or has_user_hooks(norm):
        y = norm(x)
        return F.relu(y, inplace=True) if relu else y
    untouched = norm.training and not norm.track_running_stats
    if norm.training and norm.num_batches_tracked is not None and not untouched:
        norm.num_batches_tracked.add_(1)
    return batch_norm(
        x,
        norm.weight,
        norm.bias,
        None if untouched else norm.running_mean,
        None if untouched else norm.running_var,
        training=norm.training,
        momentum=norm.momentum,  # type: ignore[arg-type]
        eps=norm.eps,
        relu=relu,
    )
