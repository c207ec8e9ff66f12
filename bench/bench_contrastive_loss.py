"""The contrastive loss, forward and backward, beside open_clip's ClipLoss.

u is the time of one N×N×D torch.mm of the same run: the arithmetic floor without an N×N array is
4 u, open_clip's count is 6 u plus several passes over N×N arrays.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench.compare import extra_peak_mib, interleave
from clipfast_kernels import backends, contrastive_loss
from clipfast_kernels.ops.contrastive.cost import contrastive_flops, product_flops
from open_clip.loss import ClipLoss

D = 512
SIZES = [256, 1024, 4096, 8192]
ROUNDS = {256: 60, 1024: 20, 4096: 7, 8192: 5}


def ours(image, text, scale):
    contrastive_loss(image, text, scale).backward()


def open_clips(image, text, scale):
    ClipLoss()(F.normalize(image, dim=1), F.normalize(text, dim=1), scale).backward()


def fresh(n):
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, D, generator=generator).requires_grad_() for _ in range(2))
    return image, text, torch.tensor(14.3, requires_grad=True)


def check_answer(n):
    """Refuses to time a wrong answer: gradients equal open_clip's to float32 rounding."""
    gradients = []
    for step in (ours, open_clips):
        inputs = fresh(n)
        step(*inputs)
        gradients.append([x.grad for x in inputs])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("n", SIZES)
def test_contrastive_loss(benchmark, n):
    check_answer(n)
    inputs, theirs = fresh(n), fresh(n)
    a, b = inputs[0].detach(), inputs[1].detach()
    out = torch.empty(n, n)
    ratios = interleave(
        benchmark,
        lambda: ours(*inputs),
        {
            "open_clip ClipLoss": lambda: open_clips(*theirs),
            "one N×N×D product": lambda: torch.mm(a, b.T, out=out),
        },
        rounds=ROUNDS[n],
        warmup=2,
    )
    if ratios:
        benchmark.extra_info["figures"] = {
            "time in u": 1 / ratios["one N×N×D product"],
            "floor in u": contrastive_flops(n, D) / product_flops(n, D),
            "GFLOP/s": contrastive_flops(n, D) / benchmark.stats.stats.median / 1e9,
        }
    benchmark.extra_info["backend"] = backends("contrastive_loss", *inputs).auto


MEMORY = """
import torch
from clipfast_bench.bench_contrastive_loss import fresh, {step}
inputs = fresh({n})
{step}(*fresh(64))
# ---
{step}(*inputs)
"""


@pytest.mark.parametrize("n", [8192])
def test_contrastive_loss_memory(benchmark, n):
    """Peak memory beyond inputs and gradients; the time is that of two processes."""
    peaks = {}
    gradients_mib = 2 * n * D * 4 / 2**20

    def measure():
        for step in ("ours", "open_clips"):
            peak = extra_peak_mib(MEMORY.format(step=step, n=n))
            peaks[f"{step} MiB"] = peak - gradients_mib

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["figures"] = peaks
