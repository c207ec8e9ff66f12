"""Held-out images and draws: of each class alike, and the same in every run."""

import pytest
import torch

from clipfast.errors import UserError
from clipfast.eval.splits import hold_out, of_each_class, places_in_class

LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 0, 0, 1, 2, 2, 2, 0, 0, 0, 2, 1, 0])


def test_a_fifth_of_each_class_is_held_out_and_no_image_is_in_both_parts():
    labels = LABELS.repeat(7)
    kept, held = hold_out(labels)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert labels[held].bincount().tolist() == [n // 5 for n in labels.bincount().tolist()]


def test_the_held_out_images_are_the_same_each_time_and_from_all_over_the_class():
    labels = torch.arange(3).repeat_interleave(100)
    first, second = hold_out(labels)[1], hold_out(labels)[1]
    assert torch.equal(first, second)
    assert first[:20].diff().unique().numel() > 1  # not every fifth
    assert first[:20].max() - first[:20].min() > 50


def test_draws_have_as_many_of_each_class_and_grow_with_the_shots():
    drawn = {k: of_each_class(LABELS, 3, k, seed=5) for k in (1, 2, 4)}
    for k, numbers in drawn.items():
        assert LABELS[numbers].bincount().tolist() == [k] * 3
        assert numbers.unique().numel() == 3 * k
    assert set(drawn[1].tolist()) < set(drawn[2].tolist()) < set(drawn[4].tolist())


def test_other_seeds_draw_other_images_and_all_are_drawn_sometimes():
    draws = {tuple(of_each_class(LABELS, 3, 1, seed).tolist()) for seed in range(60)}
    assert len(draws) > 30
    assert {number for draw in draws for number in draw} == set(range(len(LABELS)))


def test_places_number_each_class_from_0_on():
    places = places_in_class(LABELS, seed=1)
    for label, count in enumerate(LABELS.bincount().tolist()):
        assert sorted(places[label == LABELS].tolist()) == list(range(count))


def test_a_class_of_too_few_images_is_named():
    with pytest.raises(UserError, match="expected at least 5 .* each class; got 4 of class 1"):
        of_each_class(LABELS, 3, 5, seed=0)
    with pytest.raises(UserError, match="expected at least 1 .* each class; got 0 of class 3"):
        of_each_class(LABELS, 4, 1, seed=0)


def test_classes_too_small_to_hold_one_out_are_told():
    with pytest.raises(UserError, match="a class of 5 training images.*got 4 in the largest"):
        hold_out(torch.arange(3).repeat_interleave(4))
