"""What a result says of its machine: versions, rates of the hardware, the commit."""

from __future__ import annotations

import platform
import subprocess
import time
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from clipfast_bench.harness.clock import clock_for
from clipfast_bench.harness.place import places

PACKAGE = Path(__file__).parents[1]
_PACKAGES = (
    *("clipfast", "torch", "torchvision", "triton", "numpy", "open_clip_torch", "transformers"),
    *("webdataset", "nvidia-dali-cuda130", "scikit-learn", "flash-attn", "apex", "memeff"),
    *("siglip-kernel", "liger-kernel", "inf-cl"),
)
_SECONDS = 0.25  # for each rate
_FEWEST = 3


def describe(machine_info: dict[str, Any]) -> None:
    """Adds what pytest-benchmark does not know, and takes out whose machine it is."""
    installed = {(d.name or "").lower() for d in metadata.distributions()}
    machine_info["versions"] = {p: metadata.version(p) for p in _PACKAGES if p in installed}
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info.pop("node", None)


def origin() -> dict[str, Any]:
    """The machine and the commit that a result is of, in pytest-benchmark's form."""
    machine_info = {"machine": platform.machine(), "python_version": platform.python_version()}
    if find_spec("pytest_benchmark") is not None:  # it also knows the processor's name
        from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info

        machine_info = pytest_benchmark_generate_machine_info()
    describe(machine_info)
    return {"machine_info": machine_info, "commit_info": commit_info()}


@cache
def rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of a matrix product, and bytes/s read and written of a copy, the best of some.

    In float32 on a CPU, in bfloat16 on a GPU.
    """
    clock, dtype = clock_for(device), getattr(torch, places(device)[0].partition("-")[2])
    side, length = (1536, 32 << 20) if device.type == "cpu" else (8192, 512 << 20)
    a, product = torch.randn(2, side, side, device=device).to(dtype)
    source = torch.zeros(length, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return {
        "matmul_flops": 2 * side**3 / _best(clock, lambda: torch.mm(a, a, out=product)),
        "copy_bytes": 2 * source.nbytes / _best(clock, lambda: target.copy_(source)),
    }


def _best(clock: Any, run: Any) -> float:
    clock.seconds(run)
    until, found = time.perf_counter() + _SECONDS, []
    while len(found) < _FEWEST or time.perf_counter() < until:
        found.append(clock.seconds(run))
    return min(found)


def commit_info() -> dict[str, Any]:
    """Of the checkout that this package lies in, whatever folder the command runs in."""
    if _git("ls-files", "--error-unmatch", str(PACKAGE / "conftest.py")) is None:
        return {"id": "unversioned", "time": None, "dirty": False, "project": "clipfast"}
    return {
        "id": _git("rev-parse", "HEAD"),
        "time": _git("show", "-s", "--format=%cI"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "project": "clipfast",
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
