"""BatchNorm's statistics count a batch once, however often it is computed."""

import copy

import pytest
import torch
from torch import nn

from clipfast.models.recompute import statistics_untouched
from clipfast.models.resnet import ModifiedResNet


class BatchNormOfAnother(nn.BatchNorm2d):
    """Not of the class that our kernel takes: torch computes it."""


def resnet():
    return ModifiedResNet(layers=[1, 1, 1, 1], width=8, heads=4, image_size=32, output_dim=8)


def others():
    return nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormOfAnother(4), nn.Flatten())


@pytest.mark.parametrize("make", [resnet, others])
def test_a_batch_that_is_not_to_count_moves_nothing_and_gives_the_same(make):
    model = make().train()
    images = torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    with statistics_untouched(model):
        uncounted = model(images)
        poisoned = model(images * torch.nan)
    assert poisoned.isnan().any()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(uncounted, model(images))
    counts = [x for name, x in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {1}


def test_a_backward_after_the_block_that_recomputes_moves_nothing():
    model = resnet().train()
    model.set_grad_checkpointing()
    images = torch.randn(4, 3, 32, 32)
    with statistics_untouched(model):
        features = model(images)
    before = copy.deepcopy(model.state_dict())
    features.sum().backward()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
