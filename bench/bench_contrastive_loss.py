"""The contrastive loss, forward and backward, beside open_clip's ClipLoss, eager and compiled.

u is the time of one N×N×D torch.mm of the same run: the arithmetic floor without an N×N array is
4 u, open_clip's count is 6 u plus several passes over N×N arrays.
"""

from __future__ import annotations

import pytest
import torch
from clipfast_bench.pairs import ROUNDS, check_gradients, features, memory_mib, time_in_units, unit
from clipfast_kernels import contrastive_loss
from clipfast_kernels.ops.contrastive.cost import contrastive_flops, product_flops
from open_clip.loss import ClipLoss


def ours(image, text, scale):
    contrastive_loss(image, text, scale).backward()


def open_clips(image, text, scale):
    ClipLoss()(*unit(image, text), scale).backward()


_compiled = torch.compile(lambda image, text, scale: ClipLoss()(*unit(image, text), scale))


def compiled_open_clips(image, text, scale):
    _compiled(image, text, scale).backward()


def fresh(n, d=512):
    return [*features(n, d), torch.tensor(14.3, requires_grad=True)]


@pytest.mark.parametrize(
    ("n", "d"), [(256, 512), (1024, 512), (4096, 512), (8192, 512), (4096, 768), (4096, 1024)]
)
def test_contrastive_loss(benchmark, n, d):
    check_gradients(lambda: fresh(n, d), ours, open_clips)
    check_gradients(lambda: fresh(n, d), ours, compiled_open_clips)
    inputs, theirs, compiled = fresh(n, d), fresh(n, d), fresh(n, d)
    time_in_units(
        benchmark,
        lambda: ours(*inputs),
        {
            "open_clip ClipLoss": lambda: open_clips(*theirs),
            "open_clip ClipLoss, torch.compile": lambda: compiled_open_clips(*compiled),
        },
        *(x.detach() for x in inputs[:2]),
        floor=contrastive_flops(n, d) / product_flops(n, d),
        rounds=ROUNDS[n],
    )


BOTH = ["ours", "open_clips"]


@pytest.mark.parametrize(
    ("n", "steps"),
    [(1024, BOTH), (2048, BOTH), (4096, BOTH), (8192, BOTH), (16384, BOTH), (32768, ["ours"])],
)
def test_contrastive_loss_memory(benchmark, n, steps):
    """Peak memory beyond inputs and gradients; the time is that of the processes that measure it.

    open_clip is left out at N = 32,768, where it needs some 17 GB.
    """
    peaks = {}

    def measure():
        for step in steps:
            peaks[f"{step} MiB"] = memory_mib("bench_contrastive_loss", step, n)

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["figures"] = peaks


def test_contrastive_loss_at_32768(benchmark):
    """u from a product of 8,192 rows with all columns, four of which are N×N×D."""
    inputs = fresh(32768)
    a, b = (x.detach() for x in inputs[:2])
    time_in_units(benchmark, lambda: ours(*inputs), {}, a[:8192], b, floor=16, rounds=2)
    figures = benchmark.extra_info.get("figures")
    if figures:
        figures["time in u"] /= 4
        figures["floor in u"] /= 4
