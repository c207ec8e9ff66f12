"""Both trainers as their users start them, from shards to a checkpoint: a short form of
`clipfast bench train`, of a tiny model.

Seconds are of a step, by the clocks of the runs themselves; `whole run` counts the start as well.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer
from clipfast_bench.harness.cases import MORE, case
from clipfast_bench.harness.clock import ToldClock
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Samples, Subject
from clipfast_bench.inputs import models
from clipfast_bench.training.train import Bench, Setting, parse
from clipfast_bench.training.train_runs import OURS as OUR_TRAINER
from clipfast_bench.training.train_runs import THEIRS, Span
from rich.progress import Progress

ROUNDS, STEPS, BATCH = 3, 16, 32


@pytest.mark.skipif(
    bool(peers.open_clip_train(torch.device("cpu"))), reason="needs open_clip's trainer"
)
@pytest.mark.parametrize(
    "name", [case(models.TINY, id=f"tiny, batch {BATCH}", tier=MORE, seconds=50.0, weight=12.0)]
)
def test_trainer(contest, tmp_path, name):
    flags = ["--model", models.name_or_file(name), "--batch-size", str(BATCH), "--workers", "1"]
    args = parse([*flags, "--steps", str(STEPS), "--rounds", str(ROUNDS)])
    bench = Bench(args, args.models[0], Path(tmp_path), Progress(disable=True))
    whole: dict[str, list[float]] = {OURS: [], THEIRS.name: []}

    def entrant(who: str, trainer) -> Entrant:
        def run() -> float:
            timed = bench.run(Setting(trainer, 1), Span.of(STEPS), "")
            whole[who].append(timed.whole_seconds)
            return timed.step_seconds

        return Entrant(run, answer if who == OURS else lambda: Answer(0.0, 1e-4, "losses"))

    def answer() -> Answer:
        return Answer(bench.difference_of_losses(), 1e-4, "share of the losses of four steps")

    def figures(samples: Samples) -> dict[str, float]:
        own, theirs = (sorted(x)[len(x) // 2] for x in whole.values())
        step = sorted(samples[OURS])[len(samples[OURS]) // 2]
        return {"samples/s": BATCH / step, "s of a whole run": own, "open_clip's s": theirs}

    contest.hold(
        Subject("trainer"),
        [
            Contender(OURS, lambda: entrant(OURS, OUR_TRAINER)),
            Contender(THEIRS.name, lambda: entrant(THEIRS.name, THEIRS), peers.open_clip_train),
        ],
        rounds=ROUNDS,
        clock=ToldClock(),
        figures=figures,
    )
