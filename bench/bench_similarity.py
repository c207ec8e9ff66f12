"""Rank and top 10 of every query among all keys, beside the dense computation in torch.

u is the time of one n×N×D torch.mm of the same run, the floor. The case of 100,000 × 100,000 takes
minutes: ``pytest bench/bench_similarity.py -m slow --benchmark-only``; `make bench` leaves it out.
"""

from __future__ import annotations

import time

import pytest
import torch
from clipfast_bench.compare import extra_peak_mib
from clipfast_bench.pairs import ROUNDS, features, time_in_units, unit
from clipfast_kernels import gathered_similarity


def ours(queries, keys):
    return gathered_similarity(queries, keys, positives=torch.arange(len(queries)), topk=10)


def dense(queries, keys):
    similarities = queries @ keys.T
    positive = similarities.diagonal()[:, None]
    rank = (similarities > positive).sum(dim=1)
    return similarities.logsumexp(dim=1), rank, similarities.topk(10, dim=1)


def fresh(n):
    return [x.detach() for x in unit(*features(n))]


@pytest.mark.parametrize("n", [1024, 8192])
def test_gathered_similarity(benchmark, n):
    inputs = fresh(n)
    found, (lse, rank, topk) = ours(*inputs), dense(*inputs)
    torch.testing.assert_close(found.logsumexp, lse)
    torch.testing.assert_close(found.topk_values, topk.values)
    assert (found.rank != rank).float().mean() < 1e-3  # neighbours one rounding apart
    peers = {"dense torch": lambda: dense(*inputs)}
    time_in_units(benchmark, lambda: ours(*inputs), peers, *inputs, floor=1, rounds=ROUNDS[n])


MEMORY = """
import torch
from clipfast_bench.bench_similarity import fresh, {step}
inputs = fresh({n})
{step}(*fresh(64))
# ---
{step}(*inputs)
"""


def test_gathered_similarity_memory(benchmark):
    """Peak memory beyond the inputs at n = N = 8,192."""
    peaks = {}

    def measure():
        for step in ("ours", "dense"):
            peaks[f"{step} MiB"] = extra_peak_mib(MEMORY.format(step=step, n=8192))

    benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info["figures"] = peaks


@pytest.mark.slow
def test_gathered_similarity_of_a_hundred_thousand(benchmark):
    """u from a product of 4,096 queries with all keys."""
    queries, keys = fresh(100_000)
    out = torch.empty(4096, len(keys))
    torch.mm(queries[:4096], keys.T, out=out)
    began = time.perf_counter()
    torch.mm(queries[:4096], keys.T, out=out)
    unit_seconds = (time.perf_counter() - began) * len(queries) / 4096
    result = benchmark.pedantic(lambda: ours(queries, keys), rounds=1)
    exact = (queries[:64].double() @ keys.double().T).topk(10).values
    torch.testing.assert_close(result.topk_values[:64].double(), exact, atol=1e-6, rtol=0)
    peak = extra_peak_mib(MEMORY.format(step="ours", n=100_000))
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["figures"] = {"time in u": seconds / unit_seconds, "ours MiB": peak}
