"""The loss of a step equals open_clip's, on one process and, as a true gradient, on several."""

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from ranks import run_ranks

from clipfast import create_model, tokenize
from clipfast.data.batch import Batch
from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.distillation import distillation_loss
from clipfast.train.engines.engine import Encoded
from clipfast.train.model import make_model
from clipfast.train.objectives import Sigmoid, Softmax, describe, make_objective

CPU = torch.device("cpu")
B, D = 6, 8


def flags(*more):
    return parse_args(["--train-data", "x.tar", "--precision", "fp32", *more])


def pairs(rows, dtype=torch.float64):
    """Features of a student, whose lengths are not 1, and of a wider teacher."""
    generator = torch.Generator().manual_seed(0)
    widths = (D, D, D + 3, D + 3)
    return [
        torch.randn(rows, w, generator=generator, dtype=torch.float64).to(dtype) for w in widths
    ]


def leaves(image, text, scale=9.0, bias=-3.0):
    scalars = (torch.tensor(x, dtype=image.dtype) for x in (scale, bias))
    return Encoded(*(x.clone().requires_grad_() for x in (image, text, *scalars)))


def gradients(encoded):
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in encoded]


def unit(*features):
    return [F.normalize(x, dim=1) for x in features]


def assert_same(found, expected, tolerance=1e-10):
    for a, e in zip(found, expected, strict=True):
        assert (a - e).abs().max() <= tolerance * max(1, e.abs().max())


def ours(name, rows=slice(None), group=None, world_size=1, dtype=torch.float64):
    """Value and gradients of the rank that has these rows."""
    image, text, *teacher = (x[rows] for x in pairs(B * world_size, dtype))
    encoded = leaves(image, text)
    if name == "distill":
        scale = torch.tensor(30.0, dtype=dtype)
        total = distillation_loss(*encoded[:3], *teacher, scale, group=group)
    else:
        total = {"softmax": Softmax, "sigmoid": Sigmoid}[name](group, "auto")(encoded, None).total
    total.backward()
    return [total.detach(), *gradients(encoded)]


def theirs(name, rows=B, dtype=torch.float64):
    image, text, *teacher = pairs(rows, dtype)
    encoded = leaves(image, text)
    features = unit(encoded.image, encoded.text)
    if name == "softmax":
        total = ClipLoss()(*features, encoded.logit_scale, encoded.logit_bias)
    elif name == "sigmoid":
        total = SigLipLoss()(*features, encoded.logit_scale, encoded.logit_bias)
    else:
        scale = torch.tensor(30.0, dtype=dtype)
        _, total = DistillClipLoss()(*features, encoded.logit_scale, *unit(*teacher), scale)
    total.backward()
    return [total.detach(), *gradients(encoded)]


NAMES = ("softmax", "sigmoid", "distill")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_value_and_gradients_are_open_clips(name, dtype, tolerance):
    assert_same(ours(name, dtype=dtype), theirs(name, dtype=dtype), tolerance)


def test_distillation_over_several_panels_is_that_over_one():
    rows = 2100  # of which a panel has 1,997
    image, text, *teacher = (x[:, :4] for x in pairs(rows))
    encoded = leaves(image, text)
    found = distillation_loss(*encoded[:3], *teacher, torch.tensor(30.0).double())
    found.backward()
    again = leaves(image, text)
    features = unit(again.image, again.text)
    _, expected = DistillClipLoss()(*features, again.logit_scale, *unit(*teacher), 30.0)
    expected.backward()
    assert_same([found, *gradients(encoded)], [expected, *gradients(again)])


def on_a_rank():
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = slice(rank * B, (rank + 1) * B)
    return {name: ours(name, rows, dist.group.WORLD, size) for name in NAMES}


@pytest.mark.slow
def test_ranks_average_to_the_gradient_of_the_loss_over_all():
    ranks = run_ranks(2, on_a_rank)
    for name in NAMES:
        value, d_image, d_text, *d_scalars = theirs(name, 2 * B)
        for number, results in enumerate(ranks):
            rows = slice(number * B, (number + 1) * B)
            found, own_image, own_text, *_ = results[name]
            assert_same([found], [value])
            assert_same([own_image / 2, own_text / 2], [d_image[rows], d_text[rows]])
        own_scalars = zip(*(results[name][3:] for results in ranks), strict=True)
        assert_same([sum(own) / 2 for own in own_scalars], d_scalars)


def test_a_bias_gets_the_zero_gradient_that_data_parallelism_awaits():
    encoded = leaves(*pairs(B)[:2])
    Softmax(None, "auto")(encoded, None).total.backward()
    assert encoded.logit_bias.grad == 0


def batch(size=32, samples=4):
    images = torch.randint(0, 256, (samples, 3, size, size), dtype=torch.uint8)
    captions = ["a dog", "two cats on a mat", "", "a b c"][:samples]
    text = tokenize(captions, context_length=32, packed=True)
    return Batch(images, text, torch.arange(samples).numpy())


@pytest.fixture
def teacher(tiny_model, tmp_path):
    """Flags of a teacher, its model, and the student's."""
    student = create_model(tiny_model)
    torch.manual_seed(1)
    model = create_model(tiny_model)
    torch.save(model.state_dict(), tmp_path / "teacher.pt")
    weights = str(tmp_path / "teacher.pt")
    return ["--distill-model", tiny_model, "--distill-pretrained", weights], model, student


@pytest.mark.parametrize("accum_freq", [1, 2])
def test_a_teachers_part_is_open_clips_whatever_the_micro_batches(teacher, tiny_model, accum_freq):
    asked, model, student = teacher
    args = flags("--model", tiny_model, *asked, "--accum-freq", str(accum_freq))
    before = torch.get_rng_state()
    objective = make_objective(args, student, World(), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    step = batch()
    encoded = leaves(*(torch.randn(4, 32) for _ in range(2)))
    losses = objective(encoded, step)
    pixels = open_clip.image_transform(32, is_train=False).transforms[-1](step.images / 255)
    with torch.no_grad():
        image, text, scale = model.eval()(pixels, step.text)
    features = unit(encoded.image, encoded.text)
    expected = DistillClipLoss()(
        *features, encoded.logit_scale, image, text, scale, output_dict=True
    )
    assert list(losses.parts) == list(expected)
    for name, part in losses.parts.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-5, atol=1e-5)
    assert torch.equal(losses.total, sum(losses.parts.values()) + 0 * encoded.logit_bias)
    losses.total.backward()


def test_a_teacher_of_other_images_or_texts_is_refused(teacher, tiny_model, tmp_path):
    asked, _, student = teacher
    config = json.loads(Path(tiny_model).read_text())
    for part, name, value, sentence in (
        ("vision_cfg", "image_size", 64, "of the student's image size, 32; got 64"),
        ("text_cfg", "context_length", 16, "of the student's tokenizer and context length"),
    ):
        changed = config | {part: config[part] | {name: value}}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(changed))
        torch.save(create_model(str(path)).state_dict(), tmp_path / f"{name}.pt")
        asked = ["--distill-model", str(path), "--distill-pretrained", str(tmp_path / f"{name}.pt")]
        with pytest.raises(UserError, match=sentence):
            make_objective(flags("--model", tiny_model, *asked), student, World(), CPU)


def test_siglip_trains_open_clips_parameters_from_open_clips_start(tiny_model):
    model = make_model(flags("--model", tiny_model, "--siglip"), CPU)
    open_clip.add_model_config(tiny_model)
    name = tiny_model.rpartition("/")[2].removesuffix(".json")
    theirs = open_clip.create_model(name, init_logit_scale=math.log(10), init_logit_bias=-10)
    expected = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert found == expected
    assert list(found) == list(expected)
    assert model.logit_scale.item() == theirs.logit_scale.item()
    assert model.logit_bias.item() == theirs.logit_bias.item() == -10


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--loss-dist-impl", "ring"], "--loss-dist-impl: expected one of bidir.*; got 'ring'"),
        (["--distill-model", "RN50"], "--distill-model: expected --distill-pretrained with it"),
        (["--distill-pretrained", "x"], "--distill-pretrained: expected --distill-model with it"),
        (
            ["--siglip", "--distill-model", "RN50", "--distill-pretrained", "x"],
            "--distill-model: expected the softmax loss.*; got --siglip",
        ),
        (
            [
                *("--lock-image", "--cache-locked-features", "d"),
                *("--distill-model", "RN50", "--distill-pretrained", "x"),
            ],
            "--distill-model: .* expected no --cache-locked-features; got d",
        ),
        (["--coca-caption-loss-weight", "inf"], "--coca-caption-loss-weight: expected a finite"),
    ],
)
def test_flags_that_cannot_be_together_are_named(more, sentence):
    with pytest.raises(UserError, match=sentence):
        flags(*more)


def test_the_gather_flags_are_told_of_once_where_they_could_matter():
    for more in ([], ["--local-loss"], ["--gather-with-grad"]):
        (line,) = describe(flags(*more), World(size=2))
        assert "the gradient is that of the loss over all ranks" in line
        assert not list(describe(flags(*more), World()))
    assert not list(describe(flags("--local-loss", "--gather-with-grad"), World(size=2)))
    (line,) = describe(flags("--siglip", "--loss-dist-impl", "reduce"), World(size=2))
    assert "--loss-dist-impl reduce" in line
