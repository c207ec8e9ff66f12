"""The losses on a CUDA machine, bfloat16, beside the libraries people install for them.

Needs a GPU, which nobody has run this on yet; without one every row is skipped, and the summary
prints the floors on paper. memeff's and siglip-kernel's rows appear where they are installed.
Inf-CL is left out: it needs a process group even for one GPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench.compare import interleave
from clipfast_kernels import backends, contrastive_loss, sigmoid_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: not measured")
_ROUNDS = 20


def fresh(n, *scalars):
    """Unit features in bfloat16, and learnable scalars."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    rows = [
        F.normalize(torch.randn(n, 512, generator=generator, device="cuda"), dim=1).bfloat16()
        for _ in range(2)
    ]
    numbers = [torch.tensor(value, device="cuda") for value in scalars]
    return [x.requires_grad_() for x in (*rows, *numbers)]


def synchronized(loss, inputs):
    def step():
        loss(*inputs).backward()
        torch.cuda.synchronize()

    return step


def compare(benchmark, losses, n, *scalars):
    """Times every loss whose image gradient agrees with the first one's to bfloat16 rounding."""
    gradients, steps = {}, {}
    for name, loss in losses.items():
        inputs = fresh(n, *scalars)
        steps[name] = synchronized(loss, inputs)
        steps[name]()
        gradients[name] = inputs[0].grad.float()
        first = next(iter(gradients.values()))
        error = (gradients[name] - first).abs().max()
        assert error <= 2e-2 * first.abs().max(), f"{name}: a wrong gradient has no speed"
    ours, *others = steps
    interleave(benchmark, steps[ours], {name: steps[name] for name in others}, rounds=_ROUNDS)


def usable(op):
    reasons = backends(op, *fresh(2)).reasons
    return [name for name in ("torch", "triton") if not reasons[name]]


@pytest.mark.parametrize("n", [8192, 32768, 65536])
def test_contrastive_loss(benchmark, n):
    losses = {
        f"clipfast {name}": lambda i, t, s, name=name: contrastive_loss(i, t, s, backend=name)
        for name in usable("contrastive_loss")
    }
    try:
        from memeff import MemoryEfficientCLIPLoss

        memeff = MemoryEfficientCLIPLoss(temperature=1 / 14.3, stable=False)
        losses["memeff"] = lambda i, t, s: memeff(i, t)
    except ImportError:
        pass
    compare(benchmark, losses, n, 14.3)


@pytest.mark.parametrize("n", [8192, 32768, 65536])
def test_sigmoid_loss(benchmark, n):
    losses = {
        f"clipfast {name}": lambda i, t, s, b, name=name: sigmoid_loss(
            i, t, s.exp(), b, normalize=False, backend=name
        )
        for name in usable("sigmoid_loss")
    }
    try:
        from siglip_kernel import fused_siglip_loss

        losses["siglip-kernel"] = fused_siglip_loss
    except ImportError:
        pass
    compare(benchmark, losses, n, 2.302, -10.0)
