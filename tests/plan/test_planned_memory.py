"""What lies in memory by formula is what training holds."""

import pytest
import torch
from clipfast_kernels import contrastive_loss
from measuring import net_allocated

from clipfast import create_model
from clipfast.plan.counting import parameters
from clipfast.plan.hardware import GPUS, find_gpu
from clipfast.plan.memory import GIB, RESERVE, dense_loss, loss, state, usable
from clipfast.plan.towers import PlannedModel
from clipfast.train.optim.optimizers import adamw


@pytest.mark.parametrize("precision", ["fp32", "bf16", "pure_bf16"])
@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_a_plain_steps_gradients_and_optimizer_have_the_bytes_that_are_planned(
    kind, precision, request
):
    name = request.getfixturevalue(kind)
    model = create_model(name, precision=precision)
    optimizer = adamw(model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    held = [x for kept in optimizer.state.values() for x in kept.values()]
    planned = state(parameters(PlannedModel(name, precision).model, precision), precision, None, 8)
    assert planned.optimizer == sum(x.nbytes for x in held)
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    assert planned.weights == buffers + sum(p.nbytes for p in model.parameters())


def test_zero_cuts_the_optimizers_state_then_gradients_then_weights(small_vit):
    tensors = parameters(PlannedModel(small_vit).model, "amp_bf16")
    by_stage = [state(tensors, "amp_bf16", stage, 64) for stage in (0, 1, 2)]
    numbers = tensors.numbers
    assert by_stage[0].optimizer == 12 * numbers
    assert by_stage[1].optimizer == by_stage[2].optimizer == 12 * numbers / 64
    assert by_stage[0].weights == by_stage[1].weights == by_stage[2].weights == 2 * numbers
    assert by_stage[1].gradients == 2 * numbers + 4 * numbers / 64


def test_stage_3_keeps_as_many_gathered_weights_as_deepspeed_does():
    model = PlannedModel("ViT-B-32")
    tensors = parameters(model.model, "amp_bf16")
    small = state(tensors, "amp_bf16", 3, 64)
    assert small.weights == pytest.approx(2 * tensors.numbers * (1 + 1 / 64))
    large = state(tensors._replace(numbers=10**10), "amp_bf16", 3, 64)
    assert large.weights == pytest.approx(2e9 + 2e10 / 64)


@pytest.mark.parametrize("n", [1024, 2048])
def test_the_dense_losss_memory_is_what_it_takes(n):
    """Of open_clip's formula in one process: an array of logits, read both ways, its two
    log-softmax, and gradients of which one more is alive."""

    def run():
        image, text = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
        logits = image @ text.T
        labels = torch.arange(n)
        rows = torch.nn.functional.cross_entropy(logits, labels)
        return (rows + torch.nn.functional.cross_entropy(logits.T, labels)) / 2

    peak = peak_bytes(lambda: run().backward())
    assert dense_loss(n, n, 64, ranks=1) == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("n", [2048, 4096])
def test_our_losss_memory_is_at_most_what_is_planned_and_of_its_order(n):
    def run():
        image, text = (torch.randn(n, 64, requires_grad=True) for _ in range(2))
        contrastive_loss(image, text, torch.tensor(10.0), backend="torch").backward()

    peak, planned = peak_bytes(run), loss(n, n, 64, ranks=1)
    assert planned / 3 < peak < 1.2 * planned


def peak_bytes(run):
    """The most that torch's allocator had given out in `run` at once."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    alive = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def test_what_is_kept_is_counted_by_the_allocator():
    assert net_allocated(lambda: torch.zeros(1000)) == 4000
    assert net_allocated(lambda: torch.zeros(1000).sum().item()) == 0


def test_gpus_are_found_however_they_are_written_and_some_memory_is_left_free():
    assert find_gpu("h100") is GPUS["H100"]
    assert find_gpu("A100-80gb") is GPUS["A100"]
    assert usable(GPUS["A100-40GB"]) == pytest.approx(40 * GIB * (1 - RESERVE))
