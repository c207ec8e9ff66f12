"""The rows of a distributed batch as the dense references see them."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast_kernels.distributed import GatheredFeatures


def with_gradient_of_own(features: GatheredFeatures, world_size: int) -> Tensor:
    """(N, D) all ranks' rows, of which the local ones carry W times their gradient.

    Ranks' gradients are averaged afterwards, so W times each rank's share is the whole one.
    """
    local = features.local
    if world_size == 1:
        return local
    if local.requires_grad:
        local = local.view_as(local)
        local.register_hook(lambda gradient: gradient * world_size)
    everyone = features.wait()
    first = features.first_row()
    return torch.cat([everyone[:first], local, everyone[first + len(local) :]])
