"""Rank and top 10 of every query among all keys, beside the dense computation in torch.

u is the time of one n×N×D torch.mm of the same run, the floor. The case of 100,000 × 100,000 takes
minutes and runs by ``-m slow`` alone.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, within_tolerance
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.operation import (
    Answers,
    Question,
    Way,
    compiled,
    hold_question,
    run_alone,
)
from clipfast_bench.harness.place import CPU, Place
from clipfast_kernels import gathered_similarity
from clipfast_kernels.ops.similarity.cost import similarity_flops, similarity_hbm_bytes
from clipfast_kernels.ops.trial import normal

TOPK, D, DENSE = 10, 512, 16384
ROUNDS = {1024: 20, 4096: 9, 8192: 5, 100_000: 1}


def ours(queries, keys):
    positives = torch.arange(len(queries), device=queries.device)
    found = gathered_similarity(queries, keys, positives=positives, topk=TOPK)
    return found.logsumexp, found.topk_values, found.rank


def dense(queries, keys):
    similarities = (queries @ keys.T).to(torch.promote_types(queries.dtype, torch.float32))
    rank = (similarities > similarities.diagonal()[:, None]).sum(dim=1)
    return similarities.logsumexp(dim=1), similarities.topk(TOPK, dim=1).values, rank


def judge(actual: Answers, low: Answers, exact: Answers) -> Answer:
    """Ranks of neighbours that are one rounding apart may change places: in one row of a thousand,
    in 16 bits of ten."""
    off = (actual["out_2"] != low["out_2"]).double().mean().item()
    ranks = Answer(off, 1e-3 if low["out_0"].dtype == torch.float32 else 1e-1, "ranks that differ")
    floats = [{n: x for n, x in given.items() if n != "out_2"} for given in (actual, low, exact)]
    return max((ranks, within_tolerance(*floats)), key=lambda answer: answer.badness)


def ways(n: int) -> list[Way]:
    reason = f"it holds n×N arrays: too many bytes at n = N = {n:,}" if n > DENSE else ""
    return [
        Way("ours", lambda: ours),
        Way("torch, dense", lambda: dense, lambda device: reason),
        Way(
            "torch, dense, torch.compile",
            compiled(lambda: dense),
            lambda device: peers.torch_compile(device) or reason,
            compiled=True,
        ),
    ]


def ask(n: int, seed: int, place: Place = CPU) -> Question:
    queries, keys = normal(seed, place.dtype, place.device, (n, D), (n, D))
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    return Question(
        inputs={"queries": queries, "keys": keys},
        ways=ways(n),
        reference=dense,
        flops=similarity_flops(n, n, D),
        nbytes=similarity_hbm_bytes(n, n, D, place.dtype.itemsize, topk=TOPK),
        product=(queries, keys) if n <= DENSE else None,
        judge=judge,
    )


def alone(n: int, name: str):
    return run_alone(ask, n, name)


@pytest.mark.parametrize(
    "n",
    [
        case(1024, id="N=1024", tier=FIRST, work=1024**2),
        case(4096, id="N=4096", tier=MORE, work=4096**2),
        case(8192, id="N=8192", tier=LARGE, work=8192**2),
        case(100_000, id="N=100000", tier=LARGE, work=1e10, slow=True),
    ],
)
def test_gathered_similarity(contest, place, n):
    hold_question(
        contest,
        "gathered_similarity",
        partial(ask, place=place),
        n,
        rounds=ROUNDS[n],
        checked_at=1024,
        axis="N",
        dtype=place.dtype_name,
        unchecked_beyond=DENSE,
        memory_of=("ours", "torch, dense"),
        memory_run=alone,
        memory_arguments=(n,),
    )
