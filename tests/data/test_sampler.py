"""The order of the data is a pure function of seed, epoch and step."""

import numpy as np

from clipfast.data.sampler import Sampler


def epoch_of(sampler, epoch):
    return np.concatenate([sampler.batch(epoch, s) for s in range(sampler.steps_per_epoch)])


def test_an_epoch_holds_every_sample_and_repeats_only_its_own_beginning():
    sampler = Sampler.of(samples=103, batch_size=10, workers=4, seed=0)
    assert sampler.steps_per_epoch == 12, "11 full batches, rounded up to a multiple of 4"
    order = epoch_of(sampler, 0)
    assert len(order) == 120
    assert sorted(order[:103]) == list(range(103))
    assert list(order[103:]) == list(order[:17])


def test_steps_can_be_asked_for_in_any_order():
    sampler = Sampler.of(50, 8, 1, seed=1)
    assert np.array_equal(sampler.batch(3, 5), epoch_of(sampler, 3)[40:48])
    again = Sampler.of(50, 8, 1, seed=1)
    assert np.array_equal(again.batch(3, 5), sampler.batch(3, 5))


def test_epochs_and_seeds_differ():
    orders = {
        tuple(epoch_of(Sampler.of(50, 10, 1, seed), epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_random_numbers_of_a_sample_are_its_own():
    sampler = Sampler.of(50, 10, 1, seed=0)
    draws = {sampler.generator(e, n).random() for e in range(3) for n in range(50)}
    assert len(draws) == 150
    assert sampler.generator(2, 7).random() == sampler.generator(2, 7).random()


def test_a_batch_larger_than_the_data_wraps_around():
    batch = Sampler.of(3, 7, 1, seed=0).batch(0, 0)
    assert sorted(np.bincount(batch)) == [2, 2, 3]
