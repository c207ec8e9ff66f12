"""BatchNorm and ReLU of a ResNet-50's stages, channels-last, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, by_norm
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.operation import (
    Answers,
    Question,
    Way,
    compiled,
    hold_question,
    leaves,
)
from clipfast_bench.harness.place import CPU, Place
from clipfast_kernels import batch_norm
from clipfast_kernels.ops.batch_norm.cost import hbm_bytes
from clipfast_kernels.ops.trial import normal

# Of millions of values some lie so near 0 that rounding decides whether they pass the ReLU: the
# largest error says nothing, the norm of all does.
SHARE = 1e-2


def ours(x, weight, bias):
    return batch_norm(x, weight, bias, training=True, relu=True)


def modules(x, weight, bias):
    return F.relu(F.batch_norm(x, None, None, weight, bias, True), inplace=True)


def formula(x, weight, bias):
    return F.relu(F.batch_norm(x, None, None, weight, bias, True))


def apex_module():
    """Apex's, whose ReLU is inside; its weights are the case's, which it takes as parameters."""
    from apex.contrib.groupbn import BatchNorm2d_NHWC

    def run(x, weight, bias):
        module = BatchNorm2d_NHWC(x.shape[1], fuse_relu=True).to(x.device)
        module.weight.data, module.bias.data = weight.data, bias.data
        return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return run


def judge(actual: Answers, low: Answers, exact: Answers) -> Answer:
    return by_norm(actual, exact, SHARE if low["out"].dtype == torch.float32 else 5 * SHARE)


WAYS = [
    Way("ours", lambda: ours),
    Way("torch", lambda: modules),
    Way("torch.compile", compiled(lambda: modules), peers.torch_compile, compiled=True),
    Way(
        "apex",
        apex_module,
        peers.apex_group_batch_norm,
        lacks=frozenset({"d_weight", "d_bias"}),
    ),
]


def ask(batch: int, seed: int, channels: int, side: int, place: Place = CPU) -> Question:
    shape = (batch, channels, side, side)
    x, d_y = (
        t.contiguous(memory_format=torch.channels_last)
        for t in normal(seed, place.dtype, place.device, shape, shape)
    )
    weight, bias = normal(seed + 1, torch.float32, place.device, (channels,), (channels,))
    return Question(
        inputs=leaves(x=x, weight=weight, bias=bias),
        ways=WAYS,
        reference=formula,
        d_out=d_y,
        nbytes=hbm_bytes(x.numel(), x.itemsize),
        judge=judge,
    )


@pytest.mark.parametrize(
    ("channels", "side"),
    [
        case(channels, side, id=f"16x{channels}x{side}x{side}", tier=tier, work=channels * side**2)
        for channels, side, tier in ((2048, 7, FIRST), (256, 56, MORE), (64, 112, LARGE))
    ],
)
def test_batch_norm(contest, place, channels, side):
    ask_here = partial(ask, channels=channels, side=side, place=place)
    hold_question(contest, "batch_norm", ask_here, 16, rounds=12, dtype=place.dtype_name)
