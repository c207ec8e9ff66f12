"""SigLIP's loss, forward and backward, beside open_clip's SigLipLoss, eager and compiled.

u is the time of one N×N×D torch.mm of the same run; the floor without an N×N array is 3 u.
"""

from __future__ import annotations

import pytest
import torch
from clipfast_bench.pairs import ROUNDS, check_gradients, features, memory_mib, time_in_units, unit
from clipfast_kernels import sigmoid_loss
from open_clip.loss import SigLipLoss


def ours(image, text, scale, bias):
    sigmoid_loss(image, text, scale, bias).backward()


def open_clips(image, text, scale, bias):
    SigLipLoss()(*unit(image, text), scale, bias).backward()


_compiled = torch.compile(lambda i, t, scale, bias: SigLipLoss()(*unit(i, t), scale, bias))


def compiled_open_clips(image, text, scale, bias):
    _compiled(image, text, scale, bias).backward()


def fresh(n, d=512):
    return [*features(n, d), *(torch.tensor(v, requires_grad=True) for v in (10.0, -10.0))]


@pytest.mark.parametrize("n", [256, 1024, 4096, 8192])
def test_sigmoid_loss(benchmark, n):
    check_gradients(lambda: fresh(n), ours, open_clips)
    check_gradients(lambda: fresh(n), ours, compiled_open_clips)
    inputs, theirs, compiled = fresh(n), fresh(n), fresh(n)
    time_in_units(
        benchmark,
        lambda: ours(*inputs),
        {
            "open_clip SigLipLoss": lambda: open_clips(*theirs),
            "open_clip SigLipLoss, torch.compile": lambda: compiled_open_clips(*compiled),
        },
        *(x.detach() for x in inputs[:2]),
        floor=3,
        rounds=ROUNDS[n],
    )


@pytest.mark.parametrize("n", [1024, 2048, 4096, 8192])
def test_sigmoid_loss_memory(benchmark, n):
    """Peak memory beyond inputs and gradients; the time is that of two processes."""
    peaks = {}

    def measure():
        for step in ("ours", "open_clips"):
            peaks[f"{step} MiB"] = memory_mib("bench_sigmoid_loss", step, n)

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["figures"] = peaks
