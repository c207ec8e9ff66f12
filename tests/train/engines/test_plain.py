"""Several processes that average their gradients train as one does on all their samples."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.models.factory import create_model
from clipfast.packed_text import pack_ids
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.engines.plain import PlainEngine
from clipfast.train.objectives import make_objective
from clipfast.train.optim.optimizers import adamw
from clipfast.train.step import take_step

SAMPLES, STEPS = 8, 6


def samples_of(step, size):
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (SAMPLES, 3, size, size), generator=generator, dtype=torch.uint8)
    rows = [[49406, *range(5, 5 + (n + step) % 7), 100 + n, 49407] for n in range(SAMPLES)]
    return Batch(images, pack_ids(rows), np.arange(SAMPLES))


def train(name, micro_batches=1, max_norm=None, static_graph=False):
    """Losses and gradient norms of a few steps, as one of the processes that there are."""
    world = World()
    if dist.is_initialized():
        group = dist.group.WORLD
        world = World(dist.get_rank(), dist.get_world_size(), group=group, control=group)
    torch.manual_seed(0)
    model = create_model(name).train()
    encoder = Encoder(
        model, precision="fp32", normalize=Normalize(), device=world.device, compiled=False
    )
    optimizer = adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    engine = PlainEngine(
        model, optimizer, encoder, world, max_norm=max_norm, static_graph=static_graph
    )
    args = parse_args(["--train-data", "x.tar", "--model", name])
    objective = make_objective(args, model, world, world.device)
    trace = []
    for step in range(STEPS):
        batch = samples_of(step, model.image_size).split(world.size)[world.rank]
        outcome = take_step(engine, objective, batch, micro_batches=micro_batches, lr=1e-3)
        assert outcome.fault is None
        trace.append((outcome.losses["loss"], outcome.grad_norm))
    return trace


@pytest.fixture(scope="module")
def alone(tiny_model):
    torch.manual_seed(0)
    return train(tiny_model, max_norm=0.5)


@pytest.mark.parametrize(
    ("micro_batches", "static_graph"), [(1, False), (2, False), (4, False), (1, True)]
)
def test_two_ranks_follow_one(tiny_model, alone, micro_batches, static_graph):
    for trace in run_ranks(2, train, tiny_model, micro_batches, 0.5, static_graph):
        np.testing.assert_allclose(trace, alone, rtol=1e-5)


def test_a_gradient_that_is_not_finite_on_one_rank_stops_the_step_on_both(tiny_model):
    for faults, moved in run_ranks(2, one_bad_rank, tiny_model):
        assert faults == [None, "gradients are not finite", None]
        assert moved == [True, False, True]


def one_bad_rank(name):
    group = dist.group.WORLD
    world = World(dist.get_rank(), dist.get_world_size(), group=group, control=group)
    torch.manual_seed(0)
    model = create_model(name).train()
    encoder = Encoder(
        model, precision="fp32", normalize=Normalize(), device=world.device, compiled=False
    )
    optimizer = adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    engine = PlainEngine(model, optimizer, encoder, world)
    args = parse_args(["--train-data", "x.tar", "--model", name])
    objective = make_objective(args, model, world, world.device)
    faults, moved, bad = [], [], []
    if world.rank == 1:
        model.ln_final.register_full_backward_pre_hook(
            lambda module, d_out: (d_out[0] * torch.nan,) if bad else None
        )
    for step in range(3):
        bad[:] = [True] if step == 1 else []
        before = model.token_embedding.weight.detach().clone()
        batch = samples_of(step, model.image_size).split(2)[world.rank]
        outcome = take_step(engine, objective, batch, micro_batches=1, lr=1e-3)
        faults.append(outcome.fault)
        moved.append(not torch.equal(before, model.token_embedding.weight))
    return faults, moved
