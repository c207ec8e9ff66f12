"""Our models compute what open_clip's compute from the same weights: features, loss, gradients."""

import copy

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from parity import randomise_batch_norms

from clipfast.models.factory import create_model
from clipfast.models.transformer import QuickGELU
from clipfast.weights.checkpoint import save_checkpoint

CAPTIONS = ["a dog", "a photo of a very small cat on a mat, sleeping", "word " * 100, ""]


def results(model, dtype, training):
    """Features, loss, every gradient and every BatchNorm statistic of one step."""
    model = copy.deepcopy(model).to(dtype).train(training)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(dtype)
    text = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS)
    out = model(images, text)
    loss = ClipLoss()(**out)
    loss.backward()
    statistics = {n: b for n, b in model.named_buffers() if "running" in n}
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    found = {**out, "loss": loss, **statistics, **gradients}
    return {name: tensor.detach().double() for name, tensor in found.items()}


@pytest.fixture(scope="module", params=["ViT-B-32", "RN50"])
def pair(request):
    torch.manual_seed(0)
    theirs = open_clip.create_model(request.param, output_dict=True)
    randomise_batch_norms(theirs)
    ours = create_model(request.param, output_dict=True)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_features_loss_gradients_and_statistics_equal_open_clips(pair, training):
    theirs, ours = pair
    exact = results(theirs, torch.float64, training)
    # A gradient that is 0 in exact arithmetic (a key's bias) is rounding noise in any computation,
    # so every error is measured against the largest gradient as well.
    largest = max(x.abs().max().item() for n, x in exact.items() if n.startswith("gradient"))

    for name, actual in results(ours, torch.float64, training).items():
        error = (actual - exact[name]).abs().max().item()
        allowed = 1e-10 * exact[name].abs().max().item() + 1e-12 * largest
        assert error <= allowed, f"float64 {name}: error {error:.1e}, allowed {allowed:.1e}"

    low = results(theirs, torch.float32, training)
    eps = torch.finfo(torch.float32).eps
    theirs_errors = {name: (low[name] - exact[name]).abs().max().item() for name in exact}
    # Rounding decides whether a value near 0 passes a ReLU, and a flip moves the gradients around
    # it. Which ones that hits differs between two right computations: they are taken together.
    together = max(e for name, e in theirs_errors.items() if name.startswith("gradient"))
    has_relu = hasattr(ours.visual, "attnpool")
    for name, actual in results(ours, torch.float32, training).items():
        error = (actual - exact[name]).abs().max().item()
        is_gradient = name.startswith("gradient")
        theirs_error = together if has_relu and is_gradient else theirs_errors[name]
        size = exact[name].abs().max().item() + (largest if name.startswith("gradient") else 0)
        allowed = 2 * (theirs_error + eps * size)
        assert error <= allowed, f"float32 {name}: error {error:.1e}, allowed {allowed:.1e}"


def test_quickgelu_models_use_the_activation_of_openais_weights():
    x = torch.linspace(-6, 6, 100)
    torch.testing.assert_close(QuickGELU()(x), open_clip.transformer.QuickGELU()(x))
    with torch.device("meta"):
        model = create_model("ViT-B-32-quickgelu")
    for transformer in (model.transformer, model.visual.transformer):
        assert isinstance(transformer.blocks()[0].mlp.gelu, QuickGELU)


@pytest.mark.slow
def test_open_clips_own_loader_takes_our_checkpoint(pair, tmp_path):
    _, ours = pair
    name = "RN50" if hasattr(ours.visual, "attnpool") else "ViT-B-32"
    content = {"epoch": 1, "name": "x", "state_dict": ours.state_dict(), "optimizer": {}}
    save_checkpoint(tmp_path / "epoch_1.pt", content)
    loaded = open_clip.create_model(name, pretrained=str(tmp_path / "epoch_1.pt"))
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[key]), key
