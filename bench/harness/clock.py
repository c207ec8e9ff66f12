"""How long a run takes: wall time on a CPU, CUDA events with a cold L2 cache on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Run = Callable[[], object]


class Clock(Protocol):
    def seconds(self, run: Run) -> float:
        """Runs it once."""


class WallClock:
    """For work that is done when the call returns."""

    def seconds(self, run: Run) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


class CudaClock:
    """Between two events on the current stream, after the L2 cache was overwritten.

    A training step finds its inputs in HBM, not in the L2 of a loop over the same tensors. The
    overwriting also keeps the GPU busy while Python launches the run. No GPU has run this yet.
    """

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._other_data = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def seconds(self, run: Run) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._other_data.zero_()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return 1e-3 * start.elapsed_time(stop)


class ToldClock:
    """For runs that return their own seconds: of steps in another process, say."""

    def seconds(self, run: Run) -> float:
        told = run()
        assert isinstance(told, float)
        return told


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else WallClock()
