"""QuickGELU forward and backward at the size of ViT-B-32's MLP, in float32 on the CPU."""

from __future__ import annotations

import torch
from clipfast_bench.compare import interleave
from clipfast_kernels import quick_gelu


def test_quick_gelu(benchmark):
    torch.manual_seed(0)
    x, d_y = torch.randn(1600, 3072, requires_grad=True), torch.randn(1600, 3072)

    def formula(x):
        return x * torch.sigmoid(1.702 * x)

    def gradient(function):
        return lambda: torch.autograd.grad(function(x), x, d_y)[0]

    peers = {
        "open_clip's module": gradient(formula),
        "open_clip's under torch.compile": gradient(torch.compile(formula)),
        "nn.GELU, for scale": gradient(torch.nn.functional.gelu),
    }
    for name, peer in peers.items():
        if "nn.GELU" not in name:
            torch.testing.assert_close(peer(), gradient(quick_gelu)(), rtol=1e-5, atol=1e-5)
    interleave(benchmark, gradient(quick_gelu), peers, rounds=15, warmup=2)
