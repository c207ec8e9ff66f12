"""Synchronised BatchNorms: ranks with different numbers of samples against one large batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from parity import randomise_batch_norms
from ranks import run_ranks
from torch import nn

from clipfast.errors import UserError
from clipfast.models.recompute import statistics_untouched
from clipfast.models.resnet import ModifiedResNet
from clipfast.models.sync_batch_norm import SyncBatchNorm2d, synchronize_batch_norms

ROWS = [slice(0, 3), slice(3, 8)]  # of two ranks


def tower(dtype, checkpointing=False):
    torch.manual_seed(0)
    model = ModifiedResNet(layers=[1, 1, 1, 1], width=8, heads=4, image_size=32, output_dim=16)
    randomise_batch_norms(model)
    model.set_grad_checkpointing(checkpointing)
    return model.to(dtype).train()


def batch(dtype):
    torch.manual_seed(1)
    images = (3 + torch.randn(8, 3, 32, 32, dtype=torch.float64)).to(dtype)
    return images, torch.randn(8, 16, dtype=torch.float64).to(dtype)


def step(model, images, d_features):
    """Features, the gradients of images and parameters, and the buffers."""
    images = images.clone().requires_grad_()
    features = model(images)
    (features * d_features).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return features.detach(), images.grad, gradients, dict(model.named_buffers())


def on_a_rank(cases):
    return [rank_of_a_case(*case) for case in cases]


def rank_of_a_case(dtype, checkpointing):
    model = tower(dtype, checkpointing)
    synchronize_batch_norms(model, dist.group.WORLD)
    model = copy.deepcopy(model)  # as an EMA does
    images, d_features = batch(dtype)
    rows = ROWS[dist.get_rank()]
    taken = step(model, images[rows], d_features[rows])
    before = copy.deepcopy(dict(model.named_buffers()))
    with statistics_untouched(model):
        model(images[rows])
    untouched = all(torch.equal(x, before[name]) for name, x in model.named_buffers())
    return taken, untouched, list(model.state_dict())


@pytest.mark.slow
def test_ranks_of_unequal_batches_compute_what_one_large_batch_does():
    cases = {(torch.float64, True): 1e-10, (torch.float32, False): 2e-4}
    ranks = run_ranks(2, on_a_rank, list(cases))
    for number, ((dtype, _), tolerance) in enumerate(cases.items()):
        assert_equal_one_batch([results[number] for results in ranks], dtype, tolerance)


def assert_equal_one_batch(ranks, dtype, tolerance):
    model = tower(dtype)
    features, d_images, gradients, buffers = step(model, *batch(dtype))
    close = {"rtol": 0, "atol": tolerance * max(g.abs().max() for g in gradients.values())}
    for rows, ((own, d_own, _, own_buffers), untouched, names) in zip(ROWS, ranks, strict=True):
        assert names == list(model.state_dict())
        assert untouched
        torch.testing.assert_close(own, features[rows], rtol=0, atol=tolerance * own.abs().max())
        torch.testing.assert_close(d_own, d_images[rows], **close)
        for name, buffer in own_buffers.items():
            torch.testing.assert_close(buffer, buffers[name], rtol=tolerance, atol=tolerance)
    for name, gradient in gradients.items():
        total = sum(taken[2][name] for taken, _, _ in ranks)
        torch.testing.assert_close(total, gradient, msg=name, **close)


def test_outside_of_training_it_computes_alone():
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean)
    norm.eval()
    synchronised = SyncBatchNorm2d.of(norm, None)  # no process group is there to be asked
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(synchronised(x), norm(x))
    assert synchronised.weight is norm.weight
    assert not synchronised.training


def test_a_batch_norm_with_an_activation_inside_is_named():
    class BatchNormAct2d(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(2), BatchNormAct2d(2))
    with pytest.raises(UserError, match="expected torch's BatchNorm2d; got BatchNormAct2d in 1"):
        synchronize_batch_norms(model, None)
