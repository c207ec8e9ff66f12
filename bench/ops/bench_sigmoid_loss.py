"""SigLIP's loss, forward and backward, beside open_clip's SigLipLoss and siglip-kernel.

u is the time of one N×N×D torch.mm of the same run; the floor without an N×N array is 3 u.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench import peers
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.operation import (
    Question,
    Way,
    compiled,
    hold_question,
    leaves,
    run_alone,
)
from clipfast_bench.harness.place import CPU, Place
from clipfast_kernels import sigmoid_loss
from clipfast_kernels.ops.sigmoid import reference
from clipfast_kernels.ops.sigmoid.cost import sigmoid_flops, sigmoid_hbm_bytes
from clipfast_kernels.ops.trial import pairs

ROUNDS = {256: 60, 1024: 20, 4096: 7, 8192: 5}


def open_clip_loss():
    from open_clip.loss import SigLipLoss

    return lambda image, text, scale, bias: SigLipLoss()(
        F.normalize(image, dim=1), F.normalize(text, dim=1), scale, bias
    )


def siglip_kernel_loss():
    """It takes the scale's logarithm."""
    from siglip_kernel import fused_siglip_loss

    return lambda image, text, scale, bias: fused_siglip_loss(
        F.normalize(image, dim=1), F.normalize(text, dim=1), scale.log(), bias
    )


def formula(image, text, scale, bias):
    return reference.sigmoid_loss(image, text, scale, bias, normalize=True, ids=None)


WAYS = [
    Way("ours", lambda: sigmoid_loss),
    Way("open_clip", open_clip_loss, peers.open_clip),
    Way(
        "open_clip, torch.compile",
        compiled(open_clip_loss),
        lambda device: peers.open_clip(device) or peers.torch_compile(device),
        compiled=True,
    ),
    Way("siglip-kernel", siglip_kernel_loss, peers.siglip_kernel),
]


def ask(n: int, seed: int, place: Place = CPU) -> Question:
    image, text = pairs(n, 512, place.dtype, place.device, seed)
    scalars = (torch.tensor(value, device=place.device) for value in (10.0, -10.0))
    scale, bias = scalars
    return Question(
        inputs=leaves(image=image, text=text, scale=scale, bias=bias),
        ways=WAYS,
        reference=formula,
        flops=sigmoid_flops(n, 512),
        nbytes=sigmoid_hbm_bytes(n, 512, place.dtype.itemsize),
        product=(image, text),
    )


def alone(n: int, name: str):
    return run_alone(ask, n, name)


@pytest.mark.parametrize(
    "n",
    [
        case(n, id=f"N={n}", tier=tier, work=n * n)
        for n, tier in ((1024, FIRST), (256, MORE), (4096, MORE), (8192, LARGE))
    ],
)
def test_sigmoid_loss(contest, place, n):
    hold_question(
        contest,
        "sigmoid_loss",
        partial(ask, place=place),
        n,
        rounds=ROUNDS[n],
        checked_at=1024,
        axis="N",
        dtype=place.dtype_name,
        memory_of=("ours", "open_clip"),
        memory_run=alone,
        memory_arguments=(n,),
    )
