"""Locked towers: the parameters that train are open_clip's, and the rest computes without a graph,
as in evaluation."""

import json

import open_clip
import pytest
import torch
from torch import nn

from clipfast import create_model, tokenize
from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.models.locking import is_constant

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
CONV = {"tower": "conv", "image_size": 32, "channels": [8, 8]}


def ours(vision):
    return build_model(
        parse_model_config({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})
    )


def theirs(vision):
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 4, 5, 6, 9])
def test_the_same_parameters_of_a_vit_and_of_text_train_as_in_open_clip(unlocked):
    for lock in ("lock_image_tower", "lock_text_tower"):
        pair = ours(VIT), theirs(VIT)
        for model in pair:
            getattr(model, lock)(unlocked)
        assert trained(pair[0]) == trained(pair[1]), lock


@pytest.mark.parametrize("freeze", [False, True])
def test_the_same_parameters_of_a_resnet_train_as_in_open_clip(freeze):
    pair = ours(RESNET), theirs(RESNET)
    for model in pair:
        model.lock_image_tower(freeze_bn_stats=freeze)
    assert trained(pair[0]) == trained(pair[1])


def test_a_resnet_unlocks_its_last_stages():
    model = ours(RESNET)
    model.lock_image_tower(unlocked_groups=2)
    parts = {name.split(".")[1] for name in trained(model) if name.startswith("visual.")}
    assert parts == {"layer4", "attnpool"}


def test_a_conv_tower_unlocks_its_last_stages():
    model = ours(CONV)
    model.lock_image_tower(unlocked_groups=2)
    assert trained(model.visual) == {
        *(f"stages.{place}.weight" for place in (7, 8, 10, 11)),
        *("stages.8.bias", "stages.11.bias", "head.weight", "head.bias"),
    }


def test_layer_norms_of_locked_text_train_unless_they_are_frozen():
    model = ours(VIT)
    everything = trained(model)
    model.lock_text_tower(freeze_layer_norm=False)
    left = {name for name in trained(model) if not name.startswith("visual.")}
    norms = {n for n in everything if "ln_" in n and not n.startswith("visual.")}
    assert left == norms | {"logit_scale"}


def test_a_negative_number_of_groups_is_named():
    with pytest.raises(UserError, match="unlocked groups: expected 0 to 5; got -1"):
        ours(VIT).lock_image_tower(-1)


@pytest.mark.parametrize("vision", [VIT, RESNET, CONV])
def test_locked_towers_build_no_graph(vision):
    model = ours(vision).train()
    model.lock_image_tower()
    model.lock_text_tower()
    features = model.encode_image(torch.randn(2, 3, 32, 32)), model.encode_text(tokenize(["a"], 16))
    assert not any(x.requires_grad for x in features)
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    model.encode_image(image).sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_locked_vit_keeps_all_patches_in_training():
    model = ours(VIT | {"patch_dropout": 0.5}).train()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.encode_image(images), model.encode_image(images))
    model.lock_image_tower()
    model.train()
    expected = model.encode_image(images)
    assert torch.equal(expected, model.eval().encode_image(images))


@pytest.mark.parametrize("vision", [RESNET, CONV])
@pytest.mark.parametrize("freeze", [False, True])
def test_statistics_of_a_locked_tower_stand_still_only_if_frozen(vision, freeze):
    model = ours(vision).train()
    model.lock_image_tower(freeze_bn_stats=freeze)
    before = [buffer.clone() for buffer in model.visual.buffers()]
    for _ in range(2):
        model.train()
        model.encode_image(torch.randn(4, 3, 32, 32))
    same = all(torch.equal(a, b) for a, b in zip(before, model.visual.buffers(), strict=True))
    assert same == freeze == is_constant(model.visual)


def test_frozen_statistics_compute_as_open_clips_do():
    pair = ours(RESNET), theirs(RESNET)
    pair[1].load_state_dict(pair[0].state_dict())
    for model in pair:
        model.lock_image_tower(freeze_bn_stats=True)
        model.train()
    images = torch.randn(4, 3, 32, 32)
    features = [model.encode_image(images) for model in pair]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)


def test_statistics_of_unlocked_stages_move_while_frozen_ones_stand():
    model = ours(RESNET)
    model.lock_image_tower(unlocked_groups=2, freeze_bn_stats=True)
    model.train()
    modes = {n: m.training for n, m in model.visual.named_modules() if type(m) is nn.BatchNorm2d}
    assert {n.split(".")[0] for n, moves in modes.items() if moves} == {"layer4"}
    assert len([n for n, moves in modes.items() if not moves]) > 9


def test_a_locked_vit_recomputes_nothing_in_the_backward(tmp_path):
    (tmp_path / "m.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT})
    )
    model = create_model(str(tmp_path / "m.json")).train()
    model.set_grad_checkpointing()
    model.lock_image_tower(unlocked_groups=1)
    calls = []
    first = model.visual.transformer.blocks()[0].mlp
    original = first.forward
    first.forward = lambda x: calls.append(1) or original(x)
    model.encode_image(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 1
