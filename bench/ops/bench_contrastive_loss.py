"""The contrastive loss, forward and backward, beside open_clip's ClipLoss and others' kernels.

u is the time of one N×N×D torch.mm of the same run: the arithmetic floor without an N×N array is
4 u, open_clip's count is 6 u plus several passes over N×N arrays.
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
from clipfast_kernels import contrastive_loss
from clipfast_kernels.ops.contrastive import reference
from clipfast_kernels.ops.contrastive.cost import contrastive_flops, contrastive_hbm_bytes
from clipfast_kernels.ops.trial import pairs

SCALE = 14.3
DENSE = 16384  # beyond it the dense ones need more than 16 GB
ROUNDS = {256: 60, 1024: 20, 4096: 7, 8192: 5, 16384: 3, 32768: 3}


def open_clip_loss():
    from open_clip.loss import ClipLoss

    return lambda image, text, scale: ClipLoss()(
        F.normalize(image, dim=1), F.normalize(text, dim=1), scale
    )


def memeff_loss():
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(temperature=1 / SCALE, stable=False)
    return lambda image, text, scale: loss(image, text)


def liger_loss():
    """Its fused linear layer and cross entropy, once for each direction."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()

    def both(image, text, scale):
        image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
        target = torch.arange(len(image), device=image.device)
        return (loss(text, scale * image, target) + loss(image, scale * text, target)) / 2

    return both


def inf_cl_loss():
    """Its kernel for one process; its ring over processes is for more."""
    from inf_cl import cal_flash_loss

    def both(image, text, scale):
        image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
        of_images = cal_flash_loss(image, text, scale=scale)
        return (of_images + cal_flash_loss(text, image, scale=scale)).mean() / 2

    return both


def formula(image, text, scale):
    return reference.contrastive_loss(
        image, text, scale, normalize=True, ids=None, label_smoothing=0.0
    )[0]


def ways(n: int) -> list[Way]:
    def dense(serves: peers.Serves) -> peers.Serves:
        reason = f"it holds N×N arrays: too many bytes at N = {n:,}" if n > DENSE else ""
        return lambda device: serves(device) or reason

    return [
        Way("ours", lambda: contrastive_loss),
        Way("open_clip", open_clip_loss, dense(peers.open_clip)),
        Way(
            "open_clip, torch.compile",
            compiled(open_clip_loss),
            dense(lambda device: peers.open_clip(device) or peers.torch_compile(device)),
            compiled=True,
        ),
        Way("memeff", memeff_loss, peers.memeff, lacks=frozenset({"d_scale"})),
        Way("Liger, fused linear cross entropy twice", liger_loss, peers.liger),
        Way("Inf-CL", inf_cl_loss, peers.inf_cl),
    ]


def ask(n: int, seed: int, d: int = 512, place: Place = CPU) -> Question:
    image, text = pairs(n, d, place.dtype, place.device, seed)
    return Question(
        inputs=leaves(image=image, text=text, scale=torch.tensor(SCALE, device=place.device)),
        ways=ways(n),
        reference=formula,
        flops=contrastive_flops(n, d),
        nbytes=contrastive_hbm_bytes(n, d, place.dtype.itemsize),
        product=(image, text) if n <= DENSE else None,
    )


def alone(n: int, name: str):
    return run_alone(ask, n, name)


@pytest.mark.parametrize(
    ("n", "d"),
    [
        case(n, 512, id=f"N={n}", tier=tier, work=n * n, slow=n > DENSE)
        for n, tier in (
            (1024, FIRST),
            (256, MORE),
            (4096, MORE),
            (8192, LARGE),
            (16384, LARGE),
            (32768, LARGE),
        )
    ]
    + [case(4096, d, id=f"N=4096, D={d}", tier=LARGE, work=4096**2 * d / 512) for d in (768, 1024)],
)
def test_contrastive_loss(contest, place, n, d):
    hold_question(
        contest,
        "contrastive_loss",
        partial(ask, d=d, place=place),
        n,
        rounds=ROUNDS[n],
        checked_at=1024,
        axis="N" if d == 512 else None,
        dtype=place.dtype_name,
        unchecked_beyond=8192,
        memory_of=("ours", "open_clip") if d == 512 else (),
        memory_run=alone,
        memory_arguments=(n,),
    )
