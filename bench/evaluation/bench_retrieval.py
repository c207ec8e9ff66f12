"""Retrieval metrics of pairs, beside open_clip_train's, which sorts every row of all similarities.

The case of 100,000 pairs takes minutes, and ours alone can: ``-m slow``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, worst
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Subject
from clipfast_bench.harness.memory import peak_mib
from clipfast_kernels.ops.trial import normal

from clipfast.eval.retrieval import retrieval_metrics

NOISE = 6  # a text's, in units of its image's length: of 20,000 one in three is found
CHECKED, SHARE = 5_000, 1e-3
SORTABLE = 20_000  # beyond it the sorted ranks of all similarities need more than 16 GB
THEIRS = "open_clip"


def fresh(n: int) -> list[torch.Tensor]:
    image, noise = normal(0, torch.float32, torch.device("cpu"), (n, 512), (n, 512))
    return [F.normalize(x, dim=1) for x in (image, image + NOISE * noise)]


def ours(image, text):
    return retrieval_metrics(image, text)


def theirs(image, text):
    from open_clip_train.train import get_clip_metrics

    return get_clip_metrics(image, text, torch.tensor(1.0))


def answer_of(pairs: int) -> Answer:
    """Of ours, beside open_clip's metrics, which are the right ones."""
    inputs = fresh(min(pairs, CHECKED))
    actual, expected = ours(*inputs), theirs(*inputs)
    return worst(
        Answer(abs(actual[name] - value), SHARE * abs(value), name)
        for name, value in expected.items()
    )


def sortable(n: int) -> peers.Serves:
    reason = f"it sorts N×N ranks: too many bytes at N = {n:,}" if n > SORTABLE else ""
    return lambda device: peers.open_clip_train(device) or reason


@pytest.mark.skipif(
    bool(peers.open_clip_train(torch.device("cpu"))), reason="needs open_clip's trainer"
)
@pytest.mark.parametrize(
    "n",
    [
        case(1_000, id="N=1000", tier=FIRST, work=1e6),
        case(5_000, id="N=5000", tier=MORE, work=25e6),
        case(20_000, id="N=20000", tier=LARGE, work=400e6),
        case(100_000, id="N=100000", tier=LARGE, work=1e10, slow=True),
    ],
)
def test_retrieval(contest, n):
    inputs = fresh(n)
    own = Answer(0.0, SHARE, "metrics")
    contest.hold(
        Subject("retrieval", size=("N", n)),
        [
            Contender(OURS, lambda: Entrant(lambda: ours(*inputs), lambda: answer_of(n))),
            Contender(THEIRS, lambda: Entrant(lambda: theirs(*inputs), lambda: own), sortable(n)),
        ],
        rounds=5 if n < SORTABLE else 1,
        memory_mib={
            OURS: lambda: peak_mib(alone, OURS, n),
            THEIRS: lambda: peak_mib(alone, THEIRS, n),
        },
    )


def alone(who: str, n: int):
    """For a process of its own."""
    run = ours if who == OURS else theirs
    run(*fresh(64))
    inputs = fresh(n)
    return lambda: run(*inputs)
