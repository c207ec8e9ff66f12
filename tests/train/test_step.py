"""A step cut into micro-batches is the step of the whole batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.models.factory import create_model
from clipfast.packed_text import pack_ids
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.engines.plain import PlainEngine
from clipfast.train.objectives import make_objective
from clipfast.train.step import take_step

SAMPLES = 12


def make_batch(size):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (SAMPLES, 3, size, size), generator=generator, dtype=torch.uint8)
    rows = [[49406, *range(5, 5 + n % 7), 100 + n, 49407] for n in range(SAMPLES)]
    return Batch(images, pack_ids(rows), np.arange(SAMPLES))


class Step:
    """A model with plain gradient descent, so that a step shows the gradients."""

    def __init__(self, model, *flags, name="x", precision="fp32"):
        self.args = parse_args(["--train-data", "x.tar", "--model", name, *flags])
        self.model = model.train()
        cpu = torch.device("cpu")
        encoder = Encoder(
            model, precision=precision, normalize=Normalize(), device=cpu, compiled=False
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        self.engine = PlainEngine(model, torch.optim.SGD(trained, lr=1.0), encoder)
        self.objective = make_objective(self.args, model, World(), cpu)

    def take(self, batch, micro_batches):
        """The outcome, and each parameter's gradient."""
        before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        outcome = take_step(self.engine, self.objective, batch, micro_batches=micro_batches, lr=1.0)
        return outcome, {n: before[n] - p.detach() for n, p in self.model.named_parameters()}


def gradients_of(name, micro_batches, batch=None, prepare=lambda model: None):
    torch.manual_seed(0)
    model = create_model(name)
    prepare(model)
    batch = batch or make_batch(model.image_size)
    return *Step(model, name=name).take(batch, micro_batches), model


def assert_same_gradients(actual, expected):
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.parametrize("micro_batches", [2, 3, 12])
def test_micro_batches_give_the_loss_and_the_gradients_of_the_whole_batch(
    tiny_model, micro_batches
):
    whole, expected, _ = gradients_of(tiny_model, 1)
    cut, actual, _ = gradients_of(tiny_model, micro_batches)
    assert cut.losses == pytest.approx(whole.losses, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize(
    ("precision", "micro_batches", "dtype"),
    [
        ("fp32", 1, torch.float32),
        ("amp_bf16", 1, torch.bfloat16),
        ("amp_bf16", 3, torch.bfloat16),
        ("amp", 1, torch.float32),
        ("amp", 3, torch.float32),
    ],
)
def test_the_loss_is_of_bfloat16_features_where_towers_compute_in_it(
    tiny_model, precision, micro_batches, dtype
):
    torch.manual_seed(0)
    model = create_model(tiny_model)
    step, seen = Step(model, precision=precision), []
    objective = step.objective

    def watched(encoded, batch):
        seen.extend((encoded.image.dtype, encoded.text.dtype))
        return objective(encoded, batch)

    step.objective = watched
    batch = make_batch(model.image_size)
    outcome, gradients = step.take(batch, micro_batches)
    assert seen == [dtype, dtype]
    exact, expected, _ = gradients_of(tiny_model, 1)
    assert outcome.losses["loss"] == pytest.approx(exact.losses["loss"], rel=1e-2)
    for name, gradient in expected.items():
        cosine = torch.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert gradient.count_nonzero() == 0 or cosine > 0.99, name


def test_a_locked_tower_leaves_the_others_gradients_as_they_are(tiny_model):
    def lock(model):
        model.lock_image_tower()

    _, expected, _ = gradients_of(tiny_model, 1, prepare=lock)
    _, actual, model = gradients_of(tiny_model, 3, prepare=lock)
    assert_same_gradients(actual, expected)
    assert not any(actual[f"visual.{n}"].any() for n, _ in model.visual.named_parameters())


def test_patches_dropped_in_the_first_pass_are_dropped_in_the_second(tiny_model, tmp_path):
    config = json.loads(Path(tiny_model).read_text())
    config["vision_cfg"]["patch_dropout"] = 0.5
    path = tmp_path / "dropping.json"
    path.write_text(json.dumps(config))
    # Features of two passes with other patches would not fit the loss's gradients: the sum of
    # d_features · features over a batch is 0 for features of the first pass only.
    torch.manual_seed(0)
    model = create_model(str(path))
    step = Step(model, name=str(path))
    seen = []
    encode = step.engine.encode

    def recording(batch, *, last=True):
        encoded = encode(batch, last=last)
        seen.append(encoded.image.detach().clone())
        return encoded

    step.engine.encode = recording
    step.take(make_batch(model.image_size), 3)
    first, second, _, first_again, second_again = seen
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)


def test_random_numbers_go_on_after_the_second_pass_as_after_the_first(tiny_model):
    batch_of = []
    for micro_batches in (3, 3):
        gradients_of(tiny_model, micro_batches)
        batch_of.append(torch.rand(3))
    assert torch.equal(*batch_of)


def test_batch_norm_takes_each_micro_batch_into_its_statistics_once():
    _, _, model = gradients_of("digits-conv", 3)
    reference = create_model("digits-conv")
    torch.manual_seed(0)
    reference = create_model("digits-conv").train()
    normalize = Normalize()
    with torch.no_grad():
        for part in make_batch(reference.image_size).split(3):
            reference.encode_image(normalize(part.images))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = [m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm, other in zip(norms, expected, strict=True):
        assert norm.num_batches_tracked == 3
        torch.testing.assert_close(norm.running_mean, other.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, other.running_var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_loss_that_is_not_finite_leaves_the_weights_and_names_the_tower(
    tiny_model, micro_batches
):
    def break_text(model):
        with torch.no_grad():
            model.text_projection[0, 0] = torch.nan

    outcome, gradients, _ = gradients_of(tiny_model, micro_batches, prepare=break_text)
    assert "loss is nan; of 12 samples, features are not finite for 0 images and 12 texts" in (
        outcome.fault
    )
    del gradients["text_projection"]
    assert not any(gradient.any() for gradient in gradients.values())


def test_gradients_that_overflow_leave_the_weights(tiny_model):
    def steepen(model):
        model.visual.proj.register_hook(lambda gradient: gradient * torch.inf)

    outcome, gradients, _ = gradients_of(tiny_model, 1, prepare=steepen)
    assert outcome.fault == "gradients are not finite"
    assert not any(gradient.any() for gradient in gradients.values())
