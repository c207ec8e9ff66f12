"""BatchNorm and ReLU of a ResNet-50's stages, channels-last, forward and backward, on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench.compare import interleave
from clipfast_kernels import batch_norm
from clipfast_kernels.ops.batch_norm.cost import hbm_bytes


def modules(x, weight, bias):
    return F.relu(F.batch_norm(x, None, None, weight, bias, True), inplace=True)


def exact(*given):
    """In float64: gradients to x, weight and bias."""
    *leaves, d_y = (t.detach().double() for t in given)
    leaves = [t.requires_grad_() for t in leaves]
    return torch.autograd.grad(modules(*leaves), leaves, d_y)


@pytest.mark.parametrize("shape", [(16, 64, 112, 112), (16, 256, 56, 56), (16, 2048, 7, 7)])
def test_batch_norm(benchmark, shape):
    torch.manual_seed(0)
    x, d_y = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    weight, bias = (torch.randn(shape[1], requires_grad=True) for _ in range(2))

    def gradient(function):
        def run():
            y = function(x, weight, bias)
            return torch.autograd.grad(y, (x, weight, bias), d_y)

        return run

    ours = gradient(lambda *given: batch_norm(*given, training=True, relu=True))
    peers = {
        "torch's": gradient(modules),
        "torch's under torch.compile": gradient(torch.compile(modules)),
    }
    right = exact(x, weight, bias, d_y)
    # Of millions of values some lie so near 0 that rounding decides whether they pass the ReLU; the
    # peers' sums lose a digit besides.
    for function, share in ((ours, 1e-3), *((peer, 1e-2) for peer in peers.values())):
        for a, b in zip(function(), right, strict=True):
            assert (a - b).norm() <= share * b.norm(), "gradients are wrong: nothing is timed"
    interleave(benchmark, ours, peers, rounds=12, warmup=2)
    if benchmark.stats is not None:
        gib = hbm_bytes(x.numel(), 4) / 2**30
        benchmark.extra_info["figures"] = {"GiB/s": gib / benchmark.stats.stats.median}
