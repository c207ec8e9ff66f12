"""A step of --accum-freq 4, features once and one loss, beside open_clip's loop over the same."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.cases import LARGE, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Subject
from clipfast_bench.harness.memory import peak_mib
from clipfast_bench.inputs import models
from clipfast_bench.inputs.captions import captions
from clipfast_bench.training.bench_train_step import THEIRS, Expected, OpenClip

from clipfast import tokenize
from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.packed_text import pad_packed
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.engines.plain import PlainEngine
from clipfast.train.objectives import make_objective
from clipfast.train.optim.optimizers import adamw
from clipfast.train.step import take_step

ACCUM_FREQ, CONTEXT_LENGTH = 4, 77


def make_batch(side: int, samples: int) -> Batch:
    """Of a whole step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, 3, side, side), generator=generator, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, tokenize(captions(samples), packed=True), np.arange(samples))


class Ours:
    def __init__(self, name: str, weights: dict | None = None) -> None:
        self.model = models.ours(name, weights).train()
        cpu = torch.device("cpu")
        optimizer = adamw(self.model, lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
        encoder = Encoder(
            self.model, precision="fp32", normalize=Normalize(), device=cpu, compiled=False
        )
        self.engine = PlainEngine(self.model, optimizer, encoder)
        args = parse_args(["--train-data", "none.tar", "--model", models.name_or_file(name)])
        self.objective = make_objective(args, self.model, World(), cpu)

    def step(self, batch: Batch) -> float:
        outcome = take_step(self.engine, self.objective, batch, micro_batches=ACCUM_FREQ, lr=1e-6)
        assert outcome.fault is None
        return outcome.losses["loss"]


class Theirs(OpenClip):
    """Its trainer's own loop over an epoch of one step; it hands the loss to its TensorBoard."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.args = argparse.Namespace(
            accum_freq=ACCUM_FREQ,
            device="cpu",
            precision="fp32",
            skip_scheduler=True,
            grad_clip_norm=None,
            log_every_n_steps=1,
            rank=0,
            world_size=1,
            distill=False,
            horovod=False,
            wandb=False,
        )

    def step(self, batches: Epoch) -> float:
        from open_clip_train.train import train_one_epoch

        self.args.batch_size = batches.num_samples // ACCUM_FREQ
        parts = self.model, {"train": batches}, self.loss, 0, self.optimizer, None, None, None
        train_one_epoch(*parts, self.args, tb_writer=batches)
        return batches.loss


class Epoch(list):
    """A step's micro-batches, as open_clip's loop wants its data, and the loss that it tells."""

    num_batches = ACCUM_FREQ
    loss = float("nan")

    def __init__(self, batch: Batch) -> None:
        normalize = Normalize()
        super().__init__(
            (normalize(part.images), pad_packed(part.text, CONTEXT_LENGTH))
            for part in batch.split(ACCUM_FREQ)
        )
        self.num_samples = batch.samples

    @property
    def dataloader(self) -> Epoch:
        return self

    def set_epoch(self, epoch: int) -> None:
        """There is one."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if tag == "train/loss":
            self.loss = value


@pytest.mark.skipif(
    bool(peers.open_clip_train(torch.device("cpu"))), reason="needs open_clip's trainer"
)
@pytest.mark.parametrize(
    ("name", "samples"),
    [
        case(models.TINY, 128, id="tiny, 4 x 32", tier=MORE),
        case("ViT-B-32", 64, id="ViT-B-32, 4 x 16", tier=LARGE, work=1.0),
        case("RN50", 32, id="RN50, 4 x 8", tier=LARGE, work=1.3),
    ],
)
def test_accumulation(contest, name, samples):
    torch.manual_seed(0)
    theirs = Theirs(name)
    weights = copy.deepcopy(theirs.model.state_dict())
    ours = Ours(name, weights)
    batch = make_batch(ours.model.image_size, samples)
    micro_batches = Epoch(batch)
    expected = Expected(lambda: theirs.step(micro_batches), theirs.model, weights)

    def step() -> float:
        return ours.step(batch)

    contest.hold(
        Subject("accumulation"),
        [
            Contender(OURS, lambda: Entrant(step, lambda: expected.answer(step, ours.model))),
            Contender(
                THEIRS,
                lambda: Entrant(lambda: theirs.step(micro_batches), expected.own_answer),
                peers.open_clip_train,
            ),
        ],
        rounds=4,
        memory_mib={
            who: lambda who=who: peak_mib(alone, who, name, samples) for who in (OURS, THEIRS)
        }
        if name == "ViT-B-32"
        else None,
    )


def alone(who: str, name: str, samples: int) -> Callable[[], float]:
    """A step of 4 micro-batches, for a process of its own.

    Ours gives gradients back after a step, open_clip's stay: here both begin with them.
    """
    side = Ours(name) if who == OURS else Theirs(name)
    size = 64 if name == models.TINY else 224
    batch = make_batch(size, samples)
    given = batch if who == OURS else Epoch(batch)
    side.step(given)
    for p in side.model.parameters():
        p.grad = torch.zeros_like(p)
    return lambda: side.step(given)
