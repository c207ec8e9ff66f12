"""`accelerate` changes what transformers' CLIPModel costs, and nothing else."""

import copy
import io

import pytest
import torch
from models_of_others import (
    CAPTIONS,
    assert_same,
    clip_model_step,
    finished,
    images,
    make_clip_model,
    token_ids,
)

from clipfast import accelerate, tokenize, undo

ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos_token_id", [49407, 2], ids=["eos", "legacy eos"])
def test_outputs_and_every_gradient_stay_the_same(hidden_act, eos_token_id):
    model = make_clip_model(hidden_act, eos_token_id).double()
    expected = clip_model_step(model)
    accelerate(model, verbose=False)
    assert_same(clip_model_step(model), expected)


def test_classes_and_the_state_dict_stay_and_undo_brings_everything_back():
    model = make_clip_model().double()
    before, classes = clip_model_step(model), [type(m) for m in model.modules()]
    names = list(model.state_dict())
    assert accelerate(model, verbose=False) is model
    assert [type(m) for m in model.modules()] == classes
    assert list(model.state_dict()) == names
    after = clip_model_step(undo(model))
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_copy_and_a_pickle_compute_with_their_own_parameters():
    model = accelerate(make_clip_model().double(), verbose=False)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = clip_model_step(model)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # whoever still reads these shows it
        assert_same(clip_model_step(other), expected)
        model.load_state_dict(other.state_dict())


def test_packed_text_gives_what_padded_text_does():
    model = accelerate(make_clip_model().double(), verbose=False)
    packed = clip_model_step(model, tokenize(CAPTIONS, packed=True))
    assert_same(packed, clip_model_step(model))


def test_no_token_of_padding_is_computed_and_the_last_block_computes_one():
    model = accelerate(make_clip_model(), verbose=False)
    layers, rows = model.text_model.encoder.layers, []
    for norm in (layers[0].layer_norm1, layers[-1].layer_norm2):
        norm.forward = lambda x: rows.append(x.shape) or x
    model.get_text_features(token_ids())
    assert rows == [(len(tokenize(CAPTIONS, packed=True).tokens), 64), (len(CAPTIONS), 64)]


@pytest.mark.parametrize("padding", ["left", "inside"])
def test_a_mask_that_hides_text_is_obeyed(padding):
    model = make_clip_model().double()
    mask = (token_ids() != 0).long()
    mask[1, 0 if padding == "left" else 2] = 0
    expected = clip_model_step(model, attention_mask=mask)
    accelerate(model, verbose=False)
    assert_same(clip_model_step(model, attention_mask=mask), expected)


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_the_last_hidden_state_is_there_when_asked_for(tower):
    model = make_clip_model().double()
    given = images().double() if tower == "vision_model" else token_ids()
    expected = getattr(model, tower)(given)
    accelerate(model, verbose=False)
    out = getattr(model, tower)(given)
    assert list(out) == ["pooler_output"]
    torch.testing.assert_close(out.pooler_output, expected.pooler_output)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state)
    fresh = getattr(model, tower)(given)
    torch.testing.assert_close(fresh[0], expected[0])
    assert [t.shape for t in fresh.to_tuple()] == [t.shape for t in expected.to_tuple()]
    assert len(getattr(model, tower)(given, return_dict=False)) == 2


def test_hidden_states_and_attentions_stay_the_same():
    model = make_clip_model().double()
    model.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    given = images().double()
    expected = model.vision_model(given, **options)
    accelerate(model, verbose=False)
    out = model.vision_model(given, **options)
    for name in ("hidden_states", "attentions"):
        for a, b in zip(out[name], expected[name], strict=True):
            torch.testing.assert_close(a, b, **ROUNDING)
    # What transformers leaves behind to catch them does not keep the towers slow.
    assert list(model.vision_model(given)) == ["pooler_output"]


def test_hooks_inside_a_tower_see_what_they_see_without_us():
    model = make_clip_model().double()
    seen = []
    for tower in (model.vision_model, model.text_model):
        layer = tower.encoder.layers[-1]
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    clip_model_step(model)
    accelerate(model, verbose=False)
    clip_model_step(model)
    torch.testing.assert_close(seen[0], seen[2], **ROUNDING)
    torch.testing.assert_close(seen[1], seen[3], **ROUNDING)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = accelerate(make_clip_model().double(), verbose=False).train()
    expected = clip_model_step(model)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    assert_same(clip_model_step(model), expected)


def test_another_image_size_is_interpolated_as_before():
    model = make_clip_model().double()
    larger = torch.randn(2, 3, 96, 96).double()
    expected = model.get_image_features(larger, interpolate_pos_encoding=True).pooler_output
    accelerate(model, verbose=False)
    actual = model.get_image_features(larger, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(actual, expected, **ROUNDING)


@pytest.mark.slow
def test_torch_compile_takes_it():
    model = accelerate(make_clip_model().double(), verbose=False)
    expected = clip_model_step(model)
    compiled = torch.compile(model)
    model.zero_grad()
    text = tokenize(CAPTIONS, packed=True)
    out = compiled(input_ids=text, pixel_values=images().double(), return_loss=True)
    found = finished(model, out.image_embeds, out.text_embeds, model.logit_scale.exp())
    assert_same(found, {name: expected[name] for name in found})


def test_a_tower_alone_is_replaced_too(capsys):
    model = make_clip_model().double()
    expected = model.vision_model(images().double()).pooler_output
    accelerate(model.vision_model)
    assert "replaced: 1 × CLIPVisionModel" in capsys.readouterr().err
    actual = model.vision_model(images().double()).pooler_output
    torch.testing.assert_close(actual, expected, **ROUNDING)
