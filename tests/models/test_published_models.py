"""The nine models of the paper are open_clip's to the parameter: names, counts, initial weights,
and at full depth and width features, loss and gradients."""

import gc

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from parity import randomise_batch_norms
from torch import nn

from clipfast import create_model, tokenize
from clipfast.models.transformer import QuickGELU

PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-L-14-336": 427_944_193,
}
SIDES = {"RN": 64, "ViT-B-32": 64, "ViT-B-16": 32, "ViT-L-14": 56}  # two patches, or less, a side
OPENAI_NAMES = {"ViT-B/32": "ViT-B-32", "ViT-L/14@336px": "ViT-L-14-336", "RN50x64": "RN50x64"}


def side(name):
    return next(side for prefix, side in SIDES.items() if name.startswith(prefix))


@pytest.mark.parametrize("suffix", ["", "-quickgelu"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_names_shapes_and_counts_are_the_published_ones(name, suffix):
    with torch.device("meta"):
        ours = create_model(name + suffix)
        theirs = open_clip.create_model(name + suffix, device="meta")
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]
    expected = [(n, p.shape) for n, p in theirs.named_parameters()]
    assert [(n, p.shape) for n, p in ours.named_parameters()] == expected
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    activations = {type(m) for m in ours.modules() if isinstance(m, (nn.GELU, QuickGELU))}
    assert activations == {QuickGELU if suffix else nn.GELU}


@pytest.mark.parametrize(("name", "ours"), OPENAI_NAMES.items())
def test_openais_names_are_taken_too(name, ours):
    with torch.device("meta"):
        assert create_model(name).state_dict().keys() == create_model(ours).state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_initial_weights_are_spread_as_open_clips(name):
    ours, theirs = create_model(name), open_clip.create_model(name)
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if a.numel() < 2:
            assert torch.equal(a, b), key
            continue
        # Of n samples, the deviation's own is 1/√2n of it.
        spread = 6 * (b.std() + 1e-8) / (2 * a.numel()) ** 0.5
        assert (a.std() - b.std()).abs() <= 2 * spread, key
        assert (a.mean() - b.mean()).abs() <= 12 * (b.std() + 1e-8) / a.numel() ** 0.5, key


def step(model):
    """Images' features in evaluation, then one step of training."""
    model = model.double().eval()
    images = torch.randn(4, 3, *[model_side(model)] * 2, generator=torch.Generator().manual_seed(1))
    text = tokenize(["a dog", "a photo of a very small cat on a mat, sleeping", "word " * 90, ""])
    with torch.no_grad():
        evaluated = model.encode_image(images.double())
    image, caption, scale = model.train()(images.double(), text)
    loss = ClipLoss()(image, caption, scale)
    loss.backward()
    statistics = {n: b for n, b in model.named_buffers() if "running" in n}
    gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
    found = {"evaluated": evaluated, "image": image, "text": caption, "loss": loss}
    return {name: tensor.detach() for name, tensor in (found | statistics | gradients).items()}


def model_side(model):
    size = model.visual.image_size
    return size if isinstance(size, int) else size[0]


# Text is the same in training and evaluation, and gradients in evaluation are for
# test_open_clip_parity, which has a model of each kind.
@pytest.mark.slow
@pytest.mark.parametrize("name", [*PARAMETERS, "ViT-B-32-quickgelu"])
def test_features_loss_and_gradients_equal_open_clips_at_full_depth(name):
    theirs = open_clip.create_model(name, force_image_size=side(name))
    randomise_batch_norms(theirs)
    weights = {n: t.clone() for n, t in theirs.state_dict().items()}
    expected = step(theirs)
    del theirs
    gc.collect()
    ours = create_model(name, force_image_size=side(name))
    ours.load_state_dict(weights)
    del weights
    largest = max(x.abs().max().item() for n, x in expected.items() if n.startswith("gradient"))
    for key, actual in step(ours).items():
        error = (actual - expected[key]).abs().max().item()
        # A gradient that is 0 in exact arithmetic is rounding noise in any computation.
        allowed = 1e-9 * expected[key].abs().max().item() + 1e-11 * largest
        assert error <= allowed, f"{key}: error {error:.1e}, allowed {allowed:.1e}"
