"""Paired timing: peers run in turn in one process, so that the machine's moods hit all alike."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def interleave(
    benchmark: BenchmarkFixture,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
) -> dict[str, float]:
    """Times `ours` by pytest-benchmark and every peer once before each of its rounds.

    Args:
        benchmark: the fixture; every peer's samples go into its JSON as extra_info.
        ours: the function that is measured.
        peers: name to function.
        rounds, warmup: how often each is run, timed and untimed.

    Returns:
        Per peer the median over the rounds of its time divided by ours of the same round.
    """
    samples: dict[str, list[float]] = {name: [] for name in peers}

    def run_peers() -> None:
        for name, peer in peers.items():
            began = time.perf_counter()
            peer()
            samples[name].append(time.perf_counter() - began)

    benchmark.pedantic(ours, setup=run_peers, rounds=rounds, warmup_rounds=warmup)
    if benchmark.stats is None:  # --benchmark-disable: answers were checked, nothing is timed
        return {}
    own = benchmark.stats.stats.data
    timed = {name: times[-rounds:] for name, times in samples.items()}
    ratios = {
        name: statistics.median(t / o for t, o in zip(times, own, strict=True))
        for name, times in timed.items()
    }
    benchmark.extra_info["peer_seconds"] = timed
    benchmark.extra_info["peer_over_ours"] = ratios
    return ratios


def extra_peak_mib(code: str) -> float:
    """Peak memory that a statement needs beyond what its set-up holds, in MiB.

    Args:
        code: two parts around a line ``# ---``: the set-up, and what is measured; run in a process
            of its own.
    """
    setup, measured = code.split("# ---")
    script = "\n".join([setup, _RESET_PEAK, measured, _PRINT_PEAK])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


_RESET_PEAK = """
def _kib(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith(field)).split()[1])
open("/proc/self/clear_refs", "w").write("5")
_before = _kib("VmRSS")
"""
_PRINT_PEAK = """
print((_kib("VmHWM") - _before) / 1024)
"""
