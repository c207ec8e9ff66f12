"""What decays, and which layer has which learning rate."""

import open_clip
import pytest

from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.train.optim.groups import (
    check_patterns,
    layer_decay_groups,
    open_clip_rule,
    parameter_groups,
)

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "patch_size": 16, "layers": 2, "width": 64}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False}
TIMM |= {"timm_pool": "", "timm_proj": "linear", "image_size": 32}


def ours(vision=VIT):
    return build_model(
        parse_model_config({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})
    )


def names_of(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in groups]


def decayed_by_layer(model, **decays):
    return layer_decay_groups(model, 0.2, open_clip_rule(), **decays)


def scales_of(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group["lr_scale"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_gains_biases_and_the_scale_do_not_decay(vision):
    model = ours(vision)
    groups = parameter_groups(model, 0.2, open_clip_rule())
    plain, decayed = names_of(model, groups)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.2]
    order = [name for name, _ in model.named_parameters()]
    assert len(plain) + len(decayed) == len(order)
    assert {"logit_scale", "ln_final.bias"} <= set(plain)
    assert {"visual.conv1.weight", "text_projection", "positional_embedding"} <= set(decayed)
    assert plain == [n for n in order if n in plain], "positions are names in a saved state"


def test_names_that_match_do_not_decay():
    model = ours()
    rule = open_clip_rule(["*positional_embedding", "visual.proj"])
    plain, decayed = names_of(model, parameter_groups(model, 0.2, rule))
    excluded = {"positional_embedding", "visual.positional_embedding", "visual.proj"}
    assert excluded <= set(plain)
    assert "text_projection" in decayed


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(UserError, match="--wd-exclude: expected patterns .*; got 'positional'"):
        check_patterns(ours(), ["positional"])


def test_the_rate_falls_with_each_layer_below_the_head_of_its_tower():
    model = ours()
    scales = scales_of(model, decayed_by_layer(model, image=0.5, text=0.25))
    assert scales["visual.proj"] == 1.0
    assert scales["visual.ln_post.bias"] == 0.5
    assert scales["visual.transformer.resblocks.1.mlp.c_fc.weight"] == 0.5
    assert scales["visual.transformer.resblocks.0.mlp.c_fc.weight"] == 0.25
    assert scales["visual.conv1.weight"] == scales["visual.class_embedding"] == 0.125
    assert scales["text_projection"] == scales["logit_scale"] == 1.0
    assert scales["transformer.resblocks.0.ln_1.bias"] == 0.25**3
    assert scales["token_embedding.weight"] == scales["positional_embedding"] == 0.25**4


def test_a_tower_without_decay_keeps_the_rate():
    model = ours(RESNET)
    scales = scales_of(model, decayed_by_layer(model, image=0.5))
    assert scales["visual.layer4.0.conv1.weight"] == 0.5
    assert scales["visual.bn1.weight"] == 0.5**5
    assert {s for name, s in scales.items() if not name.startswith("visual.")} == {1.0}


def test_groups_have_names_and_an_order_from_the_input_to_the_head():
    groups = decayed_by_layer(ours(), image=0.5, text=0.5)
    names = [group["name"] for group in groups]
    assert names[:4] == ["image.0.no_decay", "image.0.decay", "image.1.no_decay", "image.1.decay"]
    assert names[6:8] == ["image.3.decay", "text.0.decay"]
    assert names[-2:] == ["text.4.decay", "rest.no_decay"]
    decays = {group["name"].endswith(".decay"): group["weight_decay"] for group in groups}
    assert decays == {True: 0.2, False: 0.0}
    assert all(group["params"] for group in groups)


def test_telling_layers_leaves_what_is_locked_locked():
    model = ours(RESNET)
    model.lock_image_tower(unlocked_groups=2, freeze_bn_stats=True)
    trains = [p.requires_grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    groups = decayed_by_layer(model, image=0.5)
    assert [p.requires_grad for p in model.parameters()] == trains
    assert [module.training for module in model.modules()] == modes
    assert model.visual.freeze_bn_stats
    image = [group for group in groups if group["name"].startswith("image")]
    assert [group["lr_scale"] for group in image] == [0.5, 0.5, 1.0, 1.0]


def test_open_clips_own_models_have_the_layers_of_ours():
    model = ours()
    theirs = open_clip.CLIP(16, VIT, TEXT)
    expected = decayed_by_layer(model, image=0.5, text=0.75)
    found = decayed_by_layer(theirs, image=0.5, text=0.75)
    assert names_of(theirs, found) == names_of(model, expected)
    assert scales_of(theirs, found) == scales_of(model, expected)


def test_a_timm_tower_has_timms_layers():
    model = open_clip.CustomTextCLIP(16, TIMM, TEXT)
    scales = scales_of(model, decayed_by_layer(model, image=0.5, text=0.5))
    assert scales["visual.head.proj.weight"] == 1.0
    last = {name: scales[f"visual.trunk.blocks.{name}.mlp.fc1.weight"] for name in range(12)}
    assert all(last[n] == last[n + 1] / 2 for n in range(11))
    assert scales["visual.trunk.patch_embed.proj.weight"] == last[0] / 2
    assert scales["text.token_embedding.weight"] == 0.5**4


def test_a_tower_that_tells_no_layers_is_named():
    model = open_clip.CLIP(16, RESNET, TEXT)
    with pytest.raises(UserError, match="--image-layer-decay: expected a model whose image tower"):
        decayed_by_layer(model, image=0.5)
    assert all(p.requires_grad for p in model.parameters())
