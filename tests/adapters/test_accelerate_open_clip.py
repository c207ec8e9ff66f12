"""`accelerate` changes what open_clip's models cost, and nothing else."""

import copy
import io

import open_clip
import pytest
import torch
from models_of_others import (
    CAPTIONS,
    OPEN_CLIP,
    assert_same,
    finished,
    images,
    make_open_clip,
    step,
    token_ids,
)

from clipfast import accelerate, tokenize, undo

LEFT = {"custom blocks": "visual (VisionTransformer)", "class token": "text (TextTransformer)"}


def captions_packed():
    return tokenize(CAPTIONS, packed=True)


@pytest.fixture(params=OPEN_CLIP)
def kind(request):
    return request.param


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_and_every_gradient_stay_the_same(kind, training):
    model = make_open_clip(kind).double().train(training)
    start = copy.deepcopy(model)  # BatchNorm's statistics move
    expected = step(start)
    assert_same(step(accelerate(model, verbose=False)), expected)


def test_classes_and_the_state_dict_stay_and_undo_brings_everything_back(kind):
    model = make_open_clip(kind).double().eval()
    before, classes = step(model), [type(m) for m in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    assert accelerate(model, verbose=False) is model
    assert [type(m) for m in model.modules()] == classes
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert undo(model) is model
    after = step(model)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any("forward" in vars(m) or "encode_text" in vars(m) for m in model.modules())


def test_a_copy_and_a_pickle_compute_with_their_own_parameters():
    model = accelerate(make_open_clip("vit-quickgelu").double(), verbose=False)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = step(model)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # whoever still reads these shows it
        assert_same(step(other), expected)
        model.load_state_dict(other.state_dict())


def test_packed_text_gives_what_padded_text_does():
    model = accelerate(make_open_clip("vit").double(), verbose=False)
    assert_same(step(model, captions_packed()), step(model))


def test_no_token_of_padding_is_computed():
    model = accelerate(make_open_clip("vit"), verbose=False)
    rows = []
    model.transformer.resblocks[0].ln_1.forward = lambda x: rows.append(x.shape) or x
    model.encode_text(token_ids())
    assert rows == [(len(captions_packed().tokens), 64)]


def test_the_last_block_computes_one_token_of_each_sequence():
    model = accelerate(make_open_clip("vit"), verbose=False)
    rows = []
    for transformer in (model.visual.transformer, model.transformer):
        transformer.resblocks[-1].ln_2.forward = lambda x: rows.append(x.shape) or x
    model(images(), token_ids())
    assert rows == [(4, 64), (4, 64)]


@pytest.mark.parametrize("where", ["block", "ln_1", "transformer"])
def test_hooks_inside_a_tower_see_what_they_see_without_us(where):
    model = make_open_clip("vit").double().eval()
    seen = {}

    def watch(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append(output.detach())

    for tower, transformer in (("image", model.visual.transformer), ("text", model.transformer)):
        module = {
            "block": transformer.resblocks[-1],
            "ln_1": transformer.resblocks[1].ln_1,
            "transformer": transformer,
        }[where]
        module.register_forward_hook(watch(tower))
    expected = step(model)
    accelerate(model, verbose=False)
    assert_same(step(model), expected)
    for tower in ("image", "text"):
        theirs, ours = seen[tower]
        assert torch.equal(theirs, ours)


def test_a_hook_on_the_tower_itself_costs_nothing():
    model = accelerate(make_open_clip("vit"), verbose=False)
    features, rows = [], []
    model.visual.register_forward_hook(lambda *args: features.append(args[-1].shape))
    model.visual.transformer.resblocks[-1].ln_2.forward = lambda x: rows.append(x.shape) or x
    model.encode_image(images())
    assert (features, rows) == ([(4, 64)], [(4, 64)])


def test_intermediate_features_and_output_tokens_stay_the_same():
    model = make_open_clip("vit").double().eval()
    model.visual.output_tokens = True

    def found():
        inner = model.forward_intermediates(images().double(), token_ids())
        tokens = model.visual(images().double())
        return [*inner["image_intermediates"], *inner["text_intermediates"], *tokens]

    expected = found()
    accelerate(model, verbose=False)
    for a, b in zip(found(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less():
    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            model(images().double(), token_ids())
        return sum(sizes)

    model = accelerate(make_open_clip("vit").double(), verbose=False)
    expected, everything = step(model), kept(model)
    model.set_grad_checkpointing()
    assert_same(step(model), expected)
    assert kept(model) < everything / 2


def test_patch_dropout_drops_the_same_patches():
    model = make_open_clip("vit").double().train()
    model.visual.patch_dropout = open_clip.transformer.PatchDropout(0.5)
    torch.manual_seed(3)
    expected = step(model)
    accelerate(model, verbose=False)
    torch.manual_seed(3)
    assert_same(step(model), expected)


def test_autocast_stays_as_close_as_their_own():
    model = make_open_clip("vit")
    exact = step(copy.deepcopy(model).double())["image"]

    def error():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return (model(images(), token_ids())[0] - exact).abs().max()

    theirs = error()
    accelerate(model, verbose=False)
    assert error() <= 2 * theirs


@pytest.mark.parametrize("everything", [False, True], ids=["bf16", "pure_bf16"])
def test_half_precision_parameters_stay_as_close_as_their_own(everything):
    _, vision, text, _ = OPEN_CLIP["vit"]
    exact, dtype = make_open_clip("vit").eval(), torch.bfloat16
    # The one keeps LayerNorms in float32, the other nothing.
    options = {} if everything else {"cast_dtype": dtype}
    low = open_clip.CLIP(64, dict(vision), dict(text), **options).eval()
    low.load_state_dict(exact.state_dict())
    if everything:
        low = low.to(dtype)
    else:
        open_clip.model.convert_weights_to_lp(low, dtype)
    expected = step(exact.double())

    def error():
        with torch.no_grad():
            image, caption, _ = low(images().to(dtype), token_ids())
        return max(
            (image - expected["image"]).abs().max(), (caption - expected["text"]).abs().max()
        )

    theirs = error()
    accelerate(low, verbose=False)
    assert error() <= 2 * theirs


@pytest.mark.slow
def test_torch_compile_takes_it_whole_with_packed_text():
    model = accelerate(make_open_clip("vit").double(), verbose=False)
    text = captions_packed()
    expected = step(model, text)
    compiled = torch.compile(model, fullgraph=True)
    model.zero_grad()
    image, caption, scale = compiled(images().double(), text)
    assert_same(finished(model, image, caption, scale), expected)


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_is_said_with_the_reason(kind, capsys):
    accelerate(make_open_clip(kind))
    said = capsys.readouterr().err
    assert f"left: {LEFT[kind]}: its " in said


def test_what_is_replaced_is_said_once(capsys):
    accelerate(make_open_clip("vit-quickgelu"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "clipfast.accelerate: CLIP"
    assert "  replaced: 6 × QuickGELU: fused" in said
    assert len(said) == 4


def test_a_model_nobody_knows_is_left_untouched_and_that_is_said(capsys):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    before = dict(vars(model))
    assert accelerate(model) is model
    assert vars(model) == before
    assert "Sequential is left as it is: expected a model of open_clip" in capsys.readouterr().err


def test_another_open_clip_version_is_left_untouched(monkeypatch, capsys):
    monkeypatch.setattr(open_clip, "__version__", "4.2.0")
    model = accelerate(make_open_clip("vit"))
    assert not any("forward" in vars(m) for m in model.modules())
    assert "written for open_clip 3.3.x; this is 4.2.0" in capsys.readouterr().err


def test_accelerating_twice_is_accelerating_once():
    model = accelerate(accelerate(make_open_clip("vit").double(), verbose=False), verbose=False)
    expected = step(undo(copy.deepcopy(model)))
    assert_same(step(model), expected)
