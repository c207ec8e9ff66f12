"""The order of samples: a pure function of seed, epoch and step that covers all, on any ranks."""

import dataclasses

import numpy as np
import pytest

from clipfast.data import sampler as module
from clipfast.data.sampler import Order, Sampler, Shards, order_of
from clipfast.errors import UserError


def shards(*counts, weights=None):
    weights = None if weights is None else np.array(weights, np.float64)
    return Shards(np.array(counts, np.int64), weights)


@pytest.fixture(params=["whole", "lanes"])
def kind(request, monkeypatch):
    """Both orders, at sizes that a test can look at."""
    if request.param == "lanes":
        monkeypatch.setattr(module, "WHOLE", 8)
        monkeypatch.setattr(module, "WINDOW", 16)
    return request.param


UNEVEN = (40, 1, 0, 77, 13, 60, 9)  # 200 in all


def epoch_of(sampler, epoch=0):
    return np.concatenate([sampler.batch(epoch, s) for s in range(sampler.steps_per_epoch)])


@pytest.mark.parametrize("batch_size", [1, 4, 6, 30, 64])
def test_an_epoch_holds_every_sample_and_only_the_tail_twice(kind, batch_size):
    sampler = Sampler.of(shards(*UNEVEN), batch_size, workers=1, seed=0)
    numbers, times = np.unique(epoch_of(sampler, 3), return_counts=True)
    assert np.array_equal(numbers, np.arange(200))
    assert times.max() <= 2
    assert (times == 2).sum() == sampler.steps_per_epoch * batch_size - 200


def test_epochs_and_seeds_have_orders_of_their_own(kind):
    sampler, other = (Sampler.of(shards(*UNEVEN), 10, workers=1, seed=s) for s in (0, 1))
    orders = [epoch_of(sampler, 0), epoch_of(sampler, 1), epoch_of(other, 0)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.count_nonzero(a == b) < 20


def test_a_step_is_the_same_whatever_was_asked_before(kind):
    used, fresh = (Sampler.of(shards(*UNEVEN), 10, workers=1, seed=0) for _ in range(2))
    epoch_of(used, 0)
    assert np.array_equal(used.batch(5, 7), fresh.batch(5, 7))


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_take_the_step_of_one(kind, world_size):
    one = Sampler.of(shards(*UNEVEN), 12, workers=2, seed=0)
    ranks = [
        Sampler.of(shards(*UNEVEN), 12, workers=2, seed=0, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for step in range(one.steps_per_epoch):
        parts = [rank.batch(2, step) for rank in ranks]
        assert {len(part) for part in parts} == {12 // world_size}
        assert np.array_equal(np.concatenate(parts), one.batch(2, step))


def test_a_world_size_that_cannot_share_the_lanes_is_refused_with_the_nearest(kind):
    with pytest.raises(UserError, match="a divisor of 12, the lanes .* got 5; .* are 4 and 6"):
        Sampler.of(shards(*UNEVEN), 12, workers=1, seed=0, world_size=5)
    with pytest.raises(UserError, match="got 13; the nearest are 12"):
        Sampler.of(shards(*UNEVEN), 12, workers=1, seed=0, world_size=13)


def test_a_larger_sets_step_reads_few_shards_and_a_window_of_each(monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "WINDOW", 100)
    sampler = Sampler.of(shards(*[100] * 64), 64, workers=1, seed=0)
    assert sampler.order.lanes == 64
    for rank in (0, 3):
        part = Sampler(sampler.shards, sampler.order, rank, 4)
        in_turn = np.concatenate([part.batch(0, s) for s in range(100)])
        assert len(np.unique(in_turn // 100)) == 16


def test_lanes_divide_the_batch_and_leave_each_a_window(kind):
    for batch_size in (1, 7, 12, 64):
        lanes = Sampler.of(shards(*[3000] * 5), batch_size, workers=1, seed=0).order.lanes
        assert batch_size % lanes == 0


@pytest.mark.parametrize(("ranks", "lanes"), [(1, 16), (3, 12), (7, 14), (24, 24), (48, 48)])
def test_a_start_finds_lanes_that_its_ranks_can_share_however_few_the_shards(
    monkeypatch, ranks, lanes
):
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "WINDOW", 100)
    batch_size = 7 * 48
    samplers = [
        Sampler.of(shards(*[100] * 18), batch_size, 1, 0, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    assert {sampler.order.lanes for sampler in samplers} == {lanes}
    epoch = np.concatenate([epoch_of(sampler) for sampler in samplers])
    times = np.bincount(epoch, minlength=1800)
    assert (times.min(), times.max()) == (1, 2)
    assert (times == 2).sum() == len(epoch) - 1800


def test_a_set_smaller_than_a_batch_comes_again_and_again_evenly():
    sampler = Sampler.of(shards(5), 12, workers=1, seed=0)
    assert sampler.steps_per_epoch == 1
    assert sorted(np.unique(sampler.batch(0, 0), return_counts=True)[1]) == [2, 2, 2, 3, 3]


def test_steps_are_open_clips(kind):
    assert Sampler.of(shards(1000), 64, workers=4, seed=0).steps_per_epoch == 16
    assert Sampler.of(shards(1000), 64, workers=0, seed=0).steps_per_epoch == 16
    assert Sampler.of(shards(1000), 64, workers=3, seed=0).steps_per_epoch == 18
    assert Sampler.of(shards(1000), 64, 1, 0, epoch_samples=100).steps_per_epoch == 2
    assert Sampler.of(shards(1000), 64, 1, 0, epoch_samples=3000).steps_per_epoch == 47


def test_a_short_epoch_takes_other_samples_in_each(kind):
    sampler = Sampler.of(shards(*UNEVEN), 10, workers=1, seed=0, epoch_samples=50)
    assert len(np.unique(epoch_of(sampler, 0))) == 50
    assert len(np.unique(np.concatenate([epoch_of(sampler, e) for e in range(40)]))) == 200


def test_samples_drawn_with_replacement_follow_their_weights(kind):
    weighted = shards(100, 300, 0, 100, weights=[1, 2, 5, 0])
    sampler = Sampler.of(weighted, 100, workers=1, seed=0, epoch_samples=200_000)
    numbers = epoch_of(sampler)
    assert numbers.max() < 400  # the last shard's weight is 0
    assert (numbers < 100).mean() == pytest.approx(1 / 7, abs=0.02)
    if kind == "whole":  # there, each sample is drawn by itself
        times = np.bincount(numbers[numbers >= 100] - 100, minlength=300)
        assert times.std() == pytest.approx(np.sqrt(times.mean()), rel=0.2)


def test_a_substitute_is_a_function_of_epoch_sample_and_attempt_and_near_at_first():
    sampler = Sampler.of(shards(*UNEVEN), 10, workers=1, seed=0)
    first = [sampler.substitute(1, 50, attempt) for attempt in range(1, 20)]
    assert first == [sampler.substitute(1, 50, attempt) for attempt in range(1, 20)]
    assert all(41 <= number < 118 for number in first[:4])  # the shard of 77
    assert any(not 41 <= number < 118 for number in first[4:])
    assert first != [sampler.substitute(2, 50, attempt) for attempt in range(1, 20)]


def test_a_samples_random_numbers_do_not_depend_on_the_step_that_asks():
    sampler = Sampler.of(shards(10), 5, workers=1, seed=0)
    assert sampler.generator(1, 3).random() == sampler.generator(1, 3).random()
    draws = {sampler.generator(e, n).random() for e in range(3) for n in range(3)}
    assert len(draws) == 9


def test_an_order_survives_a_checkpoint():
    order = Sampler.of(shards(*UNEVEN, weights=range(7)), 12, workers=5, seed=3).order
    assert order_of(dataclasses.asdict(order)) == order
    assert isinstance(order, Order)
