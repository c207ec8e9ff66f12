"""What a step's engine moves between 256 ranks: gradients by DDP, and by ZeRO's stages.

Counted on one rank whose group is torch's fake one; see `fake_group`.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from deepspeed_runs import flags, global_batch, make_engine, objective, rows
from fake_group import Counting, Moved, one_of
from forked import CONTEXT
from ranks import run_ranks

from clipfast.ranks.world import World


class Step(NamedTuple):
    """Attributes:
    moved: every collective of a step, but for the loss's.
    gradients: bytes of all that trains, in float32.
    """

    moved: list[Moved]
    gradients: int

    def given(self, name: str) -> float:
        """What went into collectives of that name, in multiples of the gradients."""
        return sum(m.given for m in self.moved if m.name == name) / self.gradients

    def got(self, name: str) -> float:
        return sum(m.got for m in self.moved if m.name == name) / self.gradients


def count_step(world, prepare=None, *more):
    """Of the third step: DDP makes its buckets anew after the first, and agrees on them."""
    engine = make_engine(flags("--batch-size", "2", *more), world)
    if prepare is not None:
        prepare(engine)
    # ZeRO-3 leaves empty tensors in the model, which know their size.
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in engine.model.parameters())
    part = rows(global_batch(0), 0, 2)
    for _ in range(3):
        with Counting() as forward:
            encoded = engine.encode(part)
        loss = objective(world)(encoded, part)
        with Counting() as backward:
            engine.backward(loss)
            engine.step(1e-4)
    return Step(forward.moved + backward.moved, 4 * trained)


def sum_buckets_itself(engine):
    """DDP's own way ends in an assertion over a fake group: the work's future has no result there.
    This is the same call, with a future that has one."""

    def summed(_, bucket):
        dist.all_reduce(bucket.buffer())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    engine._towers.register_comm_hook(None, summed)


def on_a_rank(*more):
    world = World(dist.get_rank(), dist.get_world_size(), group=dist.group.WORLD)
    return count_step(world, None, *more)


@pytest.mark.slow
def test_a_fake_ranks_gradients_by_ddp_are_a_real_ones():
    with one_of(2) as world:
        fake = count_step(world, sum_buckets_itself)
    for real in run_ranks(2, on_a_rank):
        assert real == fake


@pytest.mark.parametrize("ranks", [16, 256])
def test_ddp_sums_every_gradient_in_float32_once_whatever_the_ranks(ranks):
    with one_of(ranks) as world:
        step = count_step(world, sum_buckets_itself)
    assert {m.name for m in step.moved} == {"allreduce_"}
    assert step.given("allreduce_") == 1


def by_stage():
    """DeepSpeed's setting up of stages costs more than their steps."""
    world = World(dist.get_rank(), dist.get_world_size(), group=dist.group.WORLD)
    return {stage: count_step(world, None, "--zero-stage", stage) for stage in "0123"}


def by_stage_of_a_fake_rank(ranks):
    with one_of(ranks):
        return by_stage()


def fake_in_a_process(ranks):
    """DeepSpeed remembers a process's first group."""
    with CONTEXT.Pool(1) as pool:
        return pool.apply(by_stage_of_a_fake_rank, (ranks,))


@pytest.mark.slow
def test_a_fake_ranks_collectives_under_zero_are_a_real_ones():
    fake = fake_in_a_process(2)
    for real in run_ranks(2, by_stage):
        assert real == fake


@pytest.mark.slow
def test_zero_on_256_ranks_moves_gradients_and_weights_once_but_for_its_padding():
    ranks, parameters = 256, 60
    steps = fake_in_a_process(ranks)
    for stage, step in steps.items():
        padded = 1 + ranks * 4 * 4 / step.gradients  # two groups, cut at even places
        for name in ("allreduce_",) if stage in "012" else ("_reduce_scatter_base_",):
            assert step.given(name) >= 1
        if stage in "012":
            assert 1 <= step.given("allreduce_") < 1.001
        if stage in "12":
            assert 1 <= step.got("_allgather_base_") <= padded
    whole = steps["3"]
    # Every weight of its own is filled up to a multiple of the ranks.
    padded = 1 + parameters * ranks * 4 / whole.gradients
    assert 1 <= whole.given("_reduce_scatter_base_") <= padded
    assert 1 <= whole.got("_allgather_base_") <= 2 * padded
    assert whole.given("allreduce_") < 0.001
