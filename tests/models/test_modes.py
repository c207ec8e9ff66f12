"""Our models watched by hooks, recomputed in the backward, with dropped patches, in half precision
and compiled: the same function, or the one that open_clip's same mode computes."""

import copy
import json
from pathlib import Path

import open_clip
import pytest
import torch
from clipfast_kernels import contrastive_loss
from open_clip.model import convert_weights_to_lp
from parity import randomise_batch_norms

from clipfast import create_model, tokenize

CAPTIONS = ["a dog", "two cats on a mat in the sun", "", "a b c d e"]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VISION = {
    "vit": {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16},
    "resnet": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 32},
}


@pytest.fixture
def config(tmp_path):
    def write(vision, **changes):
        raw = {"embed_dim": 64, "vision_cfg": VISION[vision] | changes, "text_cfg": TEXT}
        path = tmp_path / "model.json"
        path.write_text(json.dumps(raw))
        return str(path)

    return write


def pair(path, **options):
    """Ours and open_clip's model of a configuration, with the same weights."""
    raw = json.loads(Path(path).read_text())
    theirs = open_clip.CLIP(64, raw["vision_cfg"], raw["text_cfg"], **options)
    randomise_batch_norms(theirs)
    ours = create_model(path)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images(dtype=torch.float64):
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def step(model, text=None):
    model.zero_grad()
    text = tokenize(CAPTIONS) if text is None else text
    image, caption, scale = model(images(next(model.parameters()).dtype), text)
    contrastive_loss(image, caption, scale, backend="reference").backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    return {"image": image.detach(), "text": caption.detach(), **copy.deepcopy(gradients)}


def assert_same(actual, expected, rtol=1e-9):
    largest = max(t.abs().max() for t in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=rtol, atol=1e-11 * largest, msg=name)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_hooks_on_blocks_see_what_they_see_in_open_clip(config, block):
    ours, theirs = (model.double().eval() for model in pair(config("vit")))
    seen = []
    for model in (ours, theirs):
        for transformer in (model.visual.transformer, model.transformer):
            module = transformer.resblocks[block]
            module.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    assert_same(step(ours), step(theirs))
    for a, b in zip(seen[:2], seen[2:], strict=True):
        real = slice(None) if a.shape[1] == 17 else 0  # behind a caption theirs computes padding
        torch.testing.assert_close(a[:, real], b[:, real], rtol=1e-9, atol=1e-10)
        assert a.shape == b.shape


def test_hooks_on_a_resnets_stages_see_what_they_see_in_open_clip(config):
    ours, theirs = (model.double().eval() for model in pair(config("resnet")))
    seen = []
    for model in (ours, theirs):
        model.visual.layer4.register_forward_hook(lambda m, given, out: seen.append(out.detach()))
        model.encode_image(images())
    torch.testing.assert_close(*seen, rtol=1e-9, atol=1e-10)


def test_output_tokens_are_open_clips(config):
    ours, theirs = (m.double().eval() for m in pair(config("vit", output_tokens=True)))
    for a, b in zip(ours.visual(images()), theirs.visual(images()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("vision", VISION)
def test_recomputing_changes_no_gradient_and_counts_each_batch_once(config, vision):
    model, _ = pair(config(vision))
    model = model.double().train()
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    assert_same(step(recomputing), step(model))
    for (name, a), b in zip(recomputing.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("vision", VISION)
def test_recomputing_keeps_less_for_the_backward(config, vision):
    model, _ = pair(config(vision))

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            model(images(torch.float32), tokenize(CAPTIONS))
        return sum(sizes)

    everything = kept()
    model.set_grad_checkpointing()
    assert kept() < everything / 2


def test_patch_dropout_drops_the_patches_that_open_clips_drops(config):
    ours, theirs = (m.double().train() for m in pair(config("vit", patch_dropout=0.6)))
    results = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        results.append(step(model))
    assert_same(*results)
    ours.eval()
    theirs.eval()
    assert_same(step(ours), step(theirs))


def test_layer_scale_is_open_clips(config):
    ours, theirs = (m.double() for m in pair(config("vit", ls_init_value=0.3)))
    assert_same(step(ours), step(theirs))


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
@pytest.mark.parametrize("vision", VISION)
def test_half_precision_models_have_open_clips_dtypes_and_are_as_close(config, vision, precision):
    path = config(vision)
    in_float32 = {"cast_dtype": torch.bfloat16} if precision == "bf16" else {}  # LayerNorms
    exact, theirs = pair(path, **in_float32)
    low = create_model(path, precision=precision).eval()
    low.load_state_dict(exact.state_dict())
    if precision == "bf16":
        convert_weights_to_lp(theirs, torch.bfloat16)
    else:
        theirs = theirs.to(torch.bfloat16)
    theirs.load_state_dict(exact.state_dict())
    expected = {n: p.dtype for n, p in theirs.named_parameters()}
    assert {n: p.dtype for n, p in low.named_parameters()} == expected
    expected = step(exact.double().eval())
    errors = []
    for model in (low, theirs.eval()):
        with torch.no_grad():
            image, text, _ = model(images(torch.bfloat16), tokenize(CAPTIONS))
        features = {"image": image, "text": text}
        errors.append(max((x - expected[name]).abs().max() for name, x in features.items()))
    ours, reference = errors
    assert ours <= 2 * reference


@pytest.mark.parametrize("vision", VISION)
def test_autocast_is_as_close_as_open_clips(config, vision):
    ours, theirs = (model.eval() for model in pair(config(vision)))
    exact = step(copy.deepcopy(ours).double())["image"]
    errors = []
    for model in (ours, theirs):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            image, _, _ = model(images(torch.float32), tokenize(CAPTIONS))
        errors.append((image - exact).abs().max())
    assert errors[0] <= 2 * errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("vision", VISION)
def test_torch_compile_takes_the_whole_model(config, vision):
    model, _ = pair(config(vision))
    model, text = model.double(), tokenize(CAPTIONS, packed=True)
    expected = step(copy.deepcopy(model), text)
    compiled = torch.compile(model, fullgraph=True)
    image, caption, scale = compiled(images(), text)
    contrastive_loss(image, caption, scale, backend="reference").backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    found = {"image": image.detach(), "text": caption.detach(), **gradients}
    assert_same(found, expected, rtol=1e-7)


def test_the_text_towers_mask_is_open_clips(config):
    ours, theirs = pair(config("vit"))
    assert torch.equal(ours.attn_mask, theirs.attn_mask)
