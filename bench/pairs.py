"""What the benchmarks of the losses share: features, the unit u, the answer's check, memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from clipfast_bench.compare import extra_peak_mib, interleave
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

Step = Callable[..., None]
ROUNDS = {256: 60, 1024: 20, 4096: 7, 8192: 5}


def features(n: int, d: int = 512) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2)]


def unit(*xs: Tensor) -> list[Tensor]:
    return [F.normalize(x, dim=1) for x in xs]


def check_gradients(fresh: Callable[[], list[Tensor]], ours: Step, theirs: Step) -> None:
    """Refuses to time a wrong answer: every gradient equals the peer's to float32 rounding."""
    gradients = []
    for step in (ours, theirs):
        inputs = fresh()
        step(*inputs)
        gradients.append([x.grad for x in inputs])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def time_in_units(
    benchmark: BenchmarkFixture,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    a: Tensor,
    b: Tensor,
    floor: float,
    rounds: int,
) -> None:
    """Times ours and the peers in turn, in units of one product a · bᵀ of the same rounds."""
    out = torch.empty(len(a), len(b))
    product = {"one n×N×D product": lambda: torch.mm(a, b.T, out=out)}
    ratios = interleave(benchmark, ours, {**peers, **product}, rounds=rounds, warmup=2)
    if ratios:
        benchmark.extra_info["figures"] = {
            "time in u": 1 / ratios["one n×N×D product"],
            "floor in u": floor,
        }


def memory_mib(module: str, step: str, n: int) -> float:
    """Peak memory of a module's step(*fresh(n)) beyond its inputs and gradients, in MiB."""
    code = f"""
import torch
from clipfast_bench.{module} import fresh, {step}
inputs = fresh({n})
{step}(*fresh(64))
# ---
{step}(*inputs)
"""
    return extra_peak_mib(code) - 2 * n * 512 * 4 / 2**20
